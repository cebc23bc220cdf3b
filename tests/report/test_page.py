"""What a reader of the page sees, read back from the HTML."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pydantic
import pytest

from smallfirst.evaluation.results import Comparison
from smallfirst.report import render, save
from smallfirst.report.page import OutOfScopeRequests, PromiseHeld, ReportData
from smallfirst.routing.certificate.below_threshold import Band
from smallfirst.routing.certificate.certificate import StageThreshold
from smallfirst.routing.certificate.per_class import ClassCertificate
from smallfirst.routing.certificate.risks import RiskResult
from smallfirst.stats.intervals import Estimate, wilson

Make = Callable[..., ReportData]
Build = Callable[..., Any]
VOID = {"meta", "br", "input", "wbr", "link"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Tree(HTMLParser):
    """Text of the page, its attributes, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)


def words(page: str) -> str:
    """The page's visible text, spaces folded."""
    return re.sub(r"\s+", " ", " ".join(Tree(page).texts))


def test_the_page_is_well_formed_and_small(make_report: Make) -> None:
    page = render(make_report())
    tree = Tree(page)
    assert page.startswith("<!doctype html>")
    assert (tree.open, tree.wrong) == ([], [])
    assert len(page.encode()) < 300_000


def test_the_page_loads_nothing_and_has_no_inline_handlers(make_report: Make) -> None:
    page = render(make_report())
    names = {name for name, _ in Tree(page).attributes}
    assert not [name for name in names if name.startswith("on")]
    assert "src" not in names
    assert all(v and v.startswith("#") for n, v in Tree(page).attributes if n == "href")
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_ids_are_unique_and_links_lead_somewhere(make_report: Make) -> None:
    attributes = Tree(render(make_report())).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {str(v)[1:] for n, v in attributes if n == "href"} <= set(map(str, ids))
    spoken = {part for n, v in attributes if n == "aria-labelledby" for part in str(v).split()}
    assert spoken <= set(map(str, ids))


def test_a_malicious_ticket_is_shown_as_text(make_report: Make, make_certificate: Build) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    data = make_report()
    small = data.evaluations[0]
    rows = tuple(row.model_copy(update={"text": evil}) if row.key == "row3" else row for row in small.rows)
    bad = small.model_copy(update={"rows": rows, "model": evil, "note": evil})
    page = render(
        make_report(
            evaluations=(bad, *data.evaluations[1:]),
            title=evil,
            notes=(evil,),
            versions={evil: evil},
            certificate=make_certificate(why=evil),
        )
    )
    assert "<script>alert" not in page
    assert "<img" not in page
    assert html.escape(evil) in page
    assert "onerror" not in {name for name, _ in Tree(page).attributes}


def test_a_malicious_label_is_escaped_in_tables_and_charts(make_report: Make) -> None:
    data = make_report()
    evil = '<b onload="x">'
    small = data.evaluations[0]
    rows = tuple(row.model_copy(update={"gold": evil if row.gold == "card" else row.gold}) for row in small.rows)
    page = render(make_report(evaluations=(small.model_copy(update={"rows": rows}),)))
    assert "<b " not in page
    assert "&lt;b onload=" in page


def test_figures_in_the_table_are_the_records(make_report: Make) -> None:
    seen = words(render(make_report()))
    # 7 of 8 right: Wilson 0.529 to 0.978.
    assert "small smallest that passes small-model 8 0.875 [0.529, 0.978] 0.812 [0.438, 0.938]" in seen
    # Small and large are each right on 7 of 8, on different rows: no difference, and nothing to correct.
    # 1.96 · sqrt((2 + 1) / 10 / 10) = 0.339 (Agresti and Min).
    assert "+0.0 [−33.9, +33.9] 1.0000 $0.050 12 ms" in seen
    # Routed keeps 6 of 8 and is right on all; large is recorded, so it has no rate.
    assert "$0.55 per 1,000 $5.50 a month 12 ms typical wait 75.0 % stays small" in seen
    assert "large 12 ms 30 ms – recorded" in seen


def test_the_first_sentence_says_who_answers_how_well_and_at_what_cost(make_report: Make) -> None:
    seen = words(render(make_report()))
    assert "The fine-tuned small model is good enough." in seen
    assert (
        "It is right on 87.5 % (52.9 to 97.8) of 8 test requests and costs $0.050 per 1,000 requests "
        "instead of $2.00: 40 times cheaper."
    ) in seen


def test_keep_the_api_when_only_the_large_model_passes(make_report: Make, make_verdict: Build) -> None:
    page = render(
        make_report(
            verdicts=(make_verdict("small", passed=False), make_verdict("large", passed=True)),
            smallest_passing="large",
            certificate=None,
            promise_held=None,
        )
    )
    heading = re.search(r'<h1 id="verdict">(.*?)</h1>', page)
    assert heading is not None
    assert heading[1] == "Keep the API."
    seen = words(page)
    assert "No smaller model meets the bars that were set. The large model does: it is right on 87.5 %" in seen
    assert "✗ fail accuracy at least 0.700" in seen
    assert "label 40 more rows" in seen
    assert "times cheaper" not in seen


def test_keep_the_api_when_nothing_passes(make_report: Make, make_verdict: Build) -> None:
    failing = tuple(make_verdict(name, passed=False) for name in ("small", "large"))
    seen = words(render(make_report(verdicts=failing, smallest_passing=None)))
    assert "Keep the API for now: nothing meets the bars." in seen


def test_the_api_is_not_called_better_where_nothing_shows_it(
    make_report: Make, make_evaluation: Build, make_verdict: Build
) -> None:
    verdicts = (make_verdict("small", passed=False),)

    def seen(small: str, large: str) -> str:
        pair = (
            make_evaluation("small", small, cost_usd_per_1k=1.0),
            make_evaluation("large", large, cost_usd_per_1k=2.0),
        )
        report = make_report(evaluations=pair, verdicts=verdicts, smallest_passing=None, comparisons=())
        return words(render(report))

    even = seen("ccccfffc", "ccccfffc")
    assert "Keep the API for now: no smaller model meets the bars." in even
    assert "On the 8 requests that both answered, neither is measurably better." in even
    worse = seen("ffffcccc", "ccccffff")
    assert "Keep the API. No smaller model meets the bars" in worse
    better = seen("ccccffff", "ffffcccc")
    assert "On the 8 requests that both answered, the fine-tuned model is right more often." in better


def test_each_card_says_on_how_many_rows_where_they_differ(make_report: Make, make_evaluation: Build) -> None:
    small = make_evaluation("small", "ccccffff", cost_usd_per_1k=1.0)
    large = make_evaluation("large", "ccccffff", cost_usd_per_1k=2.0)
    few = large.model_copy(update={"rows": large.rows[:4], "accuracy": wilson(4, 4)})
    same = words(render(make_report(evaluations=(small, large))))
    apart = words(render(make_report(evaluations=(small, few))))
    assert "Right: on 8 test rows" in same
    assert "n = 8" not in same.split("Right: on")[0]
    assert "n = 8" in apart.split("Right: on")[0]
    assert "n = 4" in apart.split("Right: on")[0]


def test_keep_the_api_when_the_small_model_is_good_enough_but_dearer(make_report: Make, make_evaluation: Build) -> None:
    small = make_evaluation("small", "cccfffff", cost_usd_per_1k=3.0)
    large = make_evaluation("large", "ccccfffc", cost_usd_per_1k=2.0)
    seen = words(render(make_report(evaluations=(small, large))))
    assert "Keep the API: smaller is good enough here, but not cheaper." in seen
    assert "$3.00 per 1,000 requests, more than the large path's $2.00" in seen
    assert "never" in seen


def test_a_linear_model_that_passes_is_said_so_first(
    make_report: Make, make_evaluation: Build, make_verdict: Build
) -> None:
    data = make_report()
    linear = make_evaluation("words", "cccfffff", cost_usd_per_1k=0.001)
    gap = Comparison(
        first="small",
        second="words",
        difference=Estimate(value=0.0, low=-0.1, high=0.1, n=8),
        only_first=0,
        only_second=0,
        p_value=1.0,
    )
    seen = words(
        render(
            make_report(
                evaluations=(linear, *data.evaluations),
                verdicts=(make_verdict("words", passed=True), make_verdict("small", passed=True)),
                smallest_passing="words",
                comparisons=(gap,),
            )
        )
    )
    assert "A linear model is enough here." in seen
    assert "The fine-tuned small model is not measurably different: +0.0 points" in seen
    # Minus signs are real ones.
    assert "+0.0 points [−10.0, +10.0] on the same 8 rows" in seen


def test_a_signed_verdict_says_who_signed_and_why(make_report: Make, make_verdict: Build) -> None:
    signed = make_verdict("small", passed=False).model_copy(
        update={"passed": True, "signed_by": "Ada", "because": "pilot only", "signed_at": "2026-11-25T09:00:00Z"}
    )
    seen = words(render(make_report(verdicts=(signed,))))
    assert "Passed by signature, not by measurement: Ada, because “pilot only”." in seen


def test_the_promise_says_whether_it_held(make_report: Make) -> None:
    held = words(render(make_report()))
    assert (
        "The promise held on the test rows. 0 of 6 kept test answers were wrong: 0.00 % "
        "[0.00, 45.93], within the promised 10.0 %."
    ) in held
    broken = words(render(make_report(promise_held=PromiseHeld.count(40, 100))))
    assert "The promise did not hold on the test rows. 40 of 100" in broken
    unclear = words(render(make_report(promise_held=PromiseHeld.count(12, 100))))
    assert "above the promised 10.0 %, but within what chance allows." in unclear


def test_money_on_the_page_adds_up(make_report: Make) -> None:
    seen = words(render(make_report()))
    # 10,000 requests: large $20, small $0.50, routed $5.50 of which $0.50 per 1,000 is large.
    assert "small $0.050 – $0.50 $19.50" in seen
    assert "routed $0.55 $0.50 $5.50 $14.50" in seen
    # $3.90 of training over $1.95 and $1.45 saved per 1,000 requests.
    assert "today $2.00 $0.050 2,000 $0.55 2,690" in seen
    # 400 tokens at $0.25 and 5 at $2 per million.
    assert "hosted-mini $0.25 $2.00 $0.11 $1.10" in seen


def test_the_slider_starts_at_the_certified_threshold_with_its_figures_written_out(
    make_report: Make,
) -> None:
    page = render(make_report())
    assert 'id="threshold" min="0" max="2" value="1"' in page
    found = re.search(r'id="curve-data">(.*?)</script>', page)
    assert found is not None
    at = json.loads(found[1])[1]
    assert (at["threshold"], at["errors"], at["cost"]) == ("0.800", "1 of 70", "$0.65")
    assert f'id="moving" class="moving" cx="{at["x"]}" cy="{at["y"]}"' in page
    assert 'id="mover" hidden' in page
    assert '<dd id="at-errors">1 of 70</dd>' in page


def test_a_refused_certificate_says_why_and_promises_nothing(make_report: Make, make_certificate: Build) -> None:
    refused = make_certificate(issued=False, why="Too few labels: 300 more are needed.", threshold=1.1)
    seen = words(render(make_report(certificate=refused, promise_held=None)))
    assert "No certificate Too few labels: 300 more are needed." in seen
    assert "stay small and the rest goes" not in seen
    assert "At this threshold" in seen


def test_open_ended_requests_are_counted(make_report: Make) -> None:
    seen = words(render(make_report(open_ended=OutOfScopeRequests(n_requests=10, n_to_large=9))))
    assert "Of 10 open-ended requests, 9 went to the large model: 0.900 [0.596, 0.982]" in seen


def test_one_evaluation_alone_makes_a_page(make_report: Make) -> None:
    data = make_report()
    for lone in data.evaluations:
        page = render(ReportData(title="t", task="t", evaluations=(lone,), made_at=data.made_at))
        assert "No gate was declared" in page


def test_free_text_answers_are_listed_as_mistakes_without_a_label_table(make_report: Make) -> None:
    small = make_report().evaluations[0]
    rows = tuple(r.model_copy(update={"gold": f"text {i}"}) for i, r in enumerate(small.rows))
    page = render(make_report(evaluations=(small.model_copy(update={"rows": rows}),)))
    assert "Labels, the worst first" not in page
    assert "right text 3 said fee score 0.00, confidence 0.60" in words(page)


def test_a_candidate_that_failed_cannot_be_called_the_smallest_that_passes(
    make_report: Make,
    make_verdict: Build,
) -> None:
    with pytest.raises(pydantic.ValidationError, match="smallest_passing is small, which failed"):
        make_report(verdicts=(make_verdict("small", passed=False),))


def test_a_candidate_is_evaluated_once(make_report: Make) -> None:
    small = make_report().evaluations[0]
    with pytest.raises(pydantic.ValidationError, match="evaluated more than once: small"):
        make_report(evaluations=(small, small))


def test_a_candidate_name_that_could_break_out_of_a_chart_is_refused(make_report: Make) -> None:
    odd = make_report().evaluations[0].model_copy(update={"candidate": 'x" onload="y'})
    with pytest.raises(pydantic.ValidationError, match="candidate names are plain words"):
        make_report(evaluations=(odd,))


def test_save_writes_what_render_gives(make_report: Make, tmp_path: Path) -> None:
    path = save(make_report(), tmp_path / "deep" / "report.html")
    assert path == tmp_path / "deep" / "report.html"
    assert path.read_text(encoding="utf-8") == render(make_report())


def test_a_page_can_be_made_again_from_the_stored_record(make_report: Make, tmp_path: Path) -> None:
    stored = make_report().save(tmp_path / "report.json")
    assert render(ReportData.load(stored)) == render(make_report())


def test_what_is_promised_and_what_happens_below_stand_in_tables(make_report: Make, make_certificate: Build) -> None:
    known = words(render(make_report(certificate=make_certificate())))
    assert "What is promised" not in known  # an older certificate says nothing of it
    shown = make_certificate(
        risks=(RiskResult(risk="wrong", limit=0.1, value=0.0143, bound=0.066, n=70),),
        stages=(
            StageThreshold(name="words", threshold=0.9, n_kept=30, errors_kept=0),
            StageThreshold(name="small", threshold=0.8, n_kept=40, errors_kept=1),
        ),
        bands=(
            Band(low=0, high=0.6, n=20, small_right=7, large_right=15, difference=None, p_value=0.021, then="escalate"),
            Band(low=0.6, high=0.8, n=10, small_right=9, large_right=8, difference=None, p_value=1.0, then="abstain"),
        ),
        classes=(
            ClassCertificate(
                label="fee", threshold=0.8, n_kept=60, errors=0, error_bound=0.09, certified=True, labels_missing=None
            ),
            ClassCertificate(
                label="<b>", threshold=1.01, n_kept=10, errors=1, error_bound=0.5, certified=False, labels_missing=34
            ),
        ),
        limits_of_validity=("it speaks of requests drawn like its rows",),
    )
    page = render(make_report(certificate=shown))
    read = words(page)
    assert "at most 10 % of kept answers wrong 0.0143 0.066 70" in read
    assert "words keeps 30 of 100 rows from a confidence of 0.900, the last draft keeps 40 of 100" in read
    assert "0.00 to 0.60 20 7 15 0.0210 to the large model" in read
    assert "0.60 to 0.80 10 9 8 1.0000 to a person" in read
    assert "Label by label: 1 of 2 labels hold the promise by themselves" in read
    assert "&lt;b&gt;" in page
    assert "It speaks of requests drawn like its rows." in read
