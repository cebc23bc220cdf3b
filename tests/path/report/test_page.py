"""What a reader of the page sees, read back from the HTML."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from fixtures.html_page import Page
from fixtures.report import outcome

from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.learning_curve import LearningPoint
from smallfirst.measuring.outcome import Outcome
from smallfirst.path.report.data import OpenEndedRouting, ReportData
from smallfirst.path.report.page import render, save
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, RiskResult
from smallfirst.routing.certificate.units import GroupCertificate

Make = Callable[..., ReportData]
Build = Callable[..., Any]


def words(data: ReportData) -> str:
    return Page(render(data)).words


def test_the_page_is_well_formed_and_loads_nothing(make_report: Make) -> None:
    text = render(make_report())
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert (page.open, page.wrongly_closed) == ([], [])
    assert len(text.encode()) < 300_000
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert not [found for found in ("http://", "https://", "url(") if found in text]
    assert "default-src 'none'" in text


def test_ids_are_unique_and_links_lead_somewhere(make_report: Make) -> None:
    page = Page(render(make_report()))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in page.values("href")} <= set(ids)
    assert {part for value in page.values("aria-labelledby") for part in value.split()} <= set(ids)


def test_figures_in_the_table_are_the_records(make_report: Make) -> None:
    seen = words(make_report())
    # 7 of 8 right: Wilson 0.529 to 0.978.
    assert "small chosen of those that pass small-model 8 0.875 [0.529, 0.978] 0.812 [0.438, 0.938]" in seen
    # Small and large are each right on 7 of 8, on different rows: no difference, and nothing to correct.
    # 1.96 · sqrt((2 + 1) / 10 / 10) = 0.339 (Agresti and Min).
    assert "+0.0 [−33.9, +33.9] 1.0000 $0.050 12 ms" in seen
    # Routed keeps 6 of 8 and is right on all; large is recorded, so it has no rate.
    assert "$0.55 per 1,000 $5.50 a month 12 ms typical wait 75.0 % stays small" in seen
    assert "large 12 ms 30 ms recorded" in seen
    assert "At the certified threshold 70 of 100 calibration rows stay small, 1 of them wrong" in seen


def test_each_card_says_on_how_many_rows_where_they_differ(make_report: Make, make_evaluation: Build) -> None:
    small = make_evaluation("small", "ccccffff", cost_usd_per_1k=1.0)
    large = make_evaluation("large", "ccccffff", cost_usd_per_1k=2.0)
    few = large.model_copy(update={"rows": large.rows[:4], "accuracy": wilson(4, 4)})
    same, apart = (words(make_report(evaluations=(small, other))).split("Right: on") for other in (large, few))
    assert same[1].startswith(" 8 test rows")
    assert "n = 8" not in same[0]
    assert "n = 8" in apart[0]
    assert "n = 4" in apart[0]


def test_four_cards_say_in_a_line_what_each_path_is_and_how_it_stands(
    make_report: Make, make_evaluation: Build, make_verdict: Build
) -> None:
    encoder = make_evaluation("encoder", "cccfffff", cost_usd_per_1k=0.01)
    verdicts = (make_verdict("encoder", passed=True), make_verdict("small", passed=False))
    evaluations = (encoder, *make_report().evaluations)
    live = {"smallest_passing": "encoder", "outcome": outcome("small first", "encoder")}
    page = render(make_report(evaluations=evaluations, verdicts=verdicts, **live))
    cards = page.split('<ul class="cards"')[1].split("</ul>")[0].split('<li class="card')[1:]
    expected = ("✓ meets the requirements", "✗ misses a requirement", "✓ live, under a promise", "a month")
    assert [state in card for card, state in zip(cards, expected, strict=True)] == [True] * 4
    assert "A published model turns texts into numbers" in cards[0]
    assert "not checked" not in page


def test_without_a_large_model_the_cards_are_the_candidates_that_could_go_live(
    make_report: Make, make_evaluation: Build, make_verdict: Build
) -> None:
    names = ("words", "encoder", "small")
    evaluations = [make_evaluation(name, "cccfffff", cost_usd_per_1k=0.01) for name in (*names, "base")]
    routed = make_evaluation("routed", "cccfffff", cost_usd_per_1k=0.02)  # all of it stays small
    verdicts = tuple(make_verdict(name, passed=True) for name in names)
    changes = {"evaluations": (*evaluations, routed), "verdicts": verdicts, "smallest_passing": "words"}
    page = render(make_report(**changes, outcome=outcome("small alone")))
    cards = page.split('<ul class="cards"')[1].split("</ul>")[0]
    assert re.findall(r'swatch (\w+)"', cards) == ["small", "words", "encoder"]


def test_confidence_and_mistakes_are_those_of_the_recommended_candidate(
    make_report: Make, make_evaluation: Build, make_verdict: Build
) -> None:
    encoder = make_evaluation("encoder", "cffffffc", cost_usd_per_1k=0.01, confidences=(0.9,) * 8)
    verdicts = (make_verdict("encoder", passed=True), make_verdict("small", passed=True))
    changes = {"evaluations": (encoder, *make_report().evaluations), "verdicts": verdicts}
    seen = words(make_report(**changes, smallest_passing="encoder"))
    assert "encoder on 8 test rows. Expected calibration error" in seen
    assert "encoder is wrong on 4 of 8 test rows." in seen
    # Who went live because task.yaml names it comes before the one that the rule chooses.
    assert "small is wrong on 1 of 8 test rows." in words(
        make_report(**changes, smallest_passing="encoder", outcome=outcome("small alone"))
    )
    # Where nothing passes, it is the one nearest to passing.
    near, far = (make_verdict(name, passed=False) for name in ("encoder", "small"))
    far = far.model_copy(update={"checks": far.checks * 2})
    failed = make_report(**(changes | {"verdicts": (far, near)}), smallest_passing=None)
    assert "encoder is wrong on 4 of 8 test rows." in words(failed)


def test_a_failed_gate_is_shown_with_its_advice(make_report: Make, make_verdict: Build) -> None:
    verdicts = (make_verdict("small", passed=False), make_verdict("large", passed=True))
    kept = Outcome(kind="keep the large model", large=True)
    page = render(make_report(verdicts=verdicts, smallest_passing="large", certificate=None, outcome=kept))
    assert '<h1 id="verdict">Keep the large model.</h1>' in page
    seen = Page(page).words
    assert "✗ fail accuracy at least 0.700" in seen
    assert "label 40 more rows" in seen
    assert "times cheaper" not in seen


def test_an_override_says_who_signed_and_why(make_report: Make, make_verdict: Build) -> None:
    signed = make_verdict("small", passed=False).model_copy(
        update={"passed": True, "signed_by": "Ada", "because": "pilot only", "signed_at": "2026-11-25T09:00:00Z"}
    )
    expected = "Passed by a signed override, not by measurement: Ada, because “pilot only”."
    assert expected in words(make_report(verdicts=(signed,)))


def test_money_on_the_page_adds_up(make_report: Make) -> None:
    seen = words(make_report())
    # 10,000 requests: large $20, small $0.50, routed $5.50 of which $0.50 per 1,000 is large.
    # $3.90 of training over $1.95 and $1.45 saved per 1,000 requests.
    assert "small $0.050 – $0.50 $19.50 2,000" in seen
    assert "routed $0.55 $0.50 $5.50 $14.50 2,690" in seen


def test_a_refused_certificate_says_why_and_guarantees_nothing(make_report: Make, make_certificate: Build) -> None:
    refused = make_certificate(issued=False, why="Too few labels: 300 more are needed.", threshold=1.1)
    without = {"promise": "", "share_promised": None, "watched_by": ""}
    seen = words(make_report(certificate=refused, outcome=outcome("small alone", **without)))
    assert "There is no promise about single answers" in seen
    assert "No certificate Too few labels: 300 more are needed." in seen
    assert "stay small and the rest goes" not in seen
    assert "At this threshold" in seen
    assert "✓ live, meets the requirements" in seen
    shadow = Outcome(kind="cannot be told yet", title="fine-tuned small model", alias="shadow", large=True)
    beside = words(make_report(certificate=refused, outcome=shadow))
    assert "does not go live" in beside
    assert "✓" not in beside.split("Gate")[0]


def test_the_plans_that_were_tried_stand_on_the_page(
    make_report: Make, make_certificate: Build, make_verdict: Build
) -> None:
    trial = make_verdict("small", passed=False)
    kept = Outcome(kind="keep the large model", why="why", large=True)
    seen = words(make_report(certificate=make_certificate(), outcome=kept, trials=(trial,)))
    assert "Certificate issued, and nothing goes live with it" in seen
    assert "these plans were tried in an order fixed on selection rows" in seen
    assert "Keep the large model. Why." in seen


def test_what_is_guaranteed_and_what_happens_below_stand_in_tables(make_report: Make, make_certificate: Build) -> None:
    assert "What is guaranteed" not in words(make_report())  # an older certificate has no record of it
    label = {"threshold": 0.8, "n_accepted": 60, "n_errors": 0, "error_bound": 0.09, "labels_missing": None}
    certificate = make_certificate(
        risks=(RiskResult(risk="error", limit=0.1, value=0.0143, bound=0.066, n=70),),
        thresholds={"words": 0.9, "small": 0.8},
        classes=(
            GroupCertificate(label="fee", **label),
            GroupCertificate(label="<b>", **(label | {"threshold": NEVER_ACCEPT, "labels_missing": 34})),
        ),
        limits_of_validity=("it speaks of requests drawn like its rows",),
    )
    page = render(make_report(certificate=certificate))
    seen = Page(page).words
    assert "at most 10 % of kept answers wrong 0.0143 0.066 70" in seen
    assert "words is kept from a confidence of 0.900, the last draft is kept from a confidence of 0.800." in seen
    assert "Label by label: 1 of 2 labels hold the guarantee on their own" in seen
    assert "&lt;b&gt;" in page
    assert "It speaks of requests drawn like its rows." in seen


def test_requests_outside_the_task_are_counted(make_report: Make) -> None:
    seen = words(make_report(open_ended=OpenEndedRouting(n_requests=10, n_to_large=9)))
    assert "Of 10 open-ended requests, 9 went to the large model: 0.900 [0.596, 0.982]" in seen


def test_one_evaluation_alone_makes_a_page(make_report: Make) -> None:
    data = make_report()
    for lone in data.evaluations:
        alone = ReportData(title="t", task="t", evaluations=(lone,), made_at=data.made_at)
        assert "No gate was declared" in words(alone)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (lambda data, failing: {"verdicts": (failing,)}, "smallest_passing is small, which failed"),
        (lambda data, failing: {"evaluations": data.evaluations[:1] * 2}, "evaluated more than once: small"),
        (
            lambda data, failing: {
                "evaluations": (data.evaluations[0].model_copy(update={"candidate": 'x" onload="'}),)
            },
            "candidate names must be plain words",
        ),
        (
            lambda data, failing: {
                "learning_curve": (LearningPoint(n_rows=1, candidate="<b>", accuracy=wilson(1, 2)),)
            },
            "candidate names must be plain words",
        ),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(
    make_report: Make, make_verdict: Build, changes: Build, rule: str
) -> None:
    with pytest.raises(pydantic.ValidationError, match=rule):
        make_report(**changes(make_report(), make_verdict("small", passed=False)))


def test_a_page_can_be_made_again_from_the_stored_record(make_report: Make, tmp_path: Path) -> None:
    page = save(make_report(), tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    stored = make_report().save(tmp_path / "report.json")
    assert render(ReportData.load(stored)) == page


def test_what_refuses_a_part_of_the_requests_is_the_path_that_is_live(make_report: Make) -> None:
    refusing = outcome("small alone", share_small=wilson(7, 8), rest="refused", promise="", share_promised=None)
    data = make_report(outcome=refusing, certificate=None)
    assert data.evaluation("routed") is not None
    page = render(data)
    (live,) = re.findall(r'<li class="card chosen">(.*?)</li>', page, flags=re.DOTALL)
    assert "With a domain check" in live
    assert "live" in live
    assert "the large one the rest" not in page.lower().partition('<ul class="cards"')[2].partition("</ul>")[0]
