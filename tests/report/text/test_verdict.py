"""The headline, and the sentences that compare the paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from smallfirst.gate.verdict import LabelsNeeded, Outcome
from smallfirst.report.data import ReportData
from smallfirst.report.text.verdict import comparisons, headline, linear_note
from smallfirst.stats.intervals import wilson

Make = Callable[..., ReportData]
Build = Callable[..., Any]


def plain(text: str) -> str:
    return text.replace("\xa0", " ")


def test_the_headline_says_who_answers_how_well_and_at_what_cost(make_report: Make) -> None:
    found = headline(make_report(certificate=None))
    assert found.heading == "Go live: the fine-tuned small model is good enough."
    assert plain(found.sentence) == (
        "It is right on 87.5 % (52.9 to 97.8) of 8 test requests and costs $0.050 per 1,000 requests "
        "instead of $2.00: 40 times cheaper."
    )


NEEDED = LabelsNeeded(part="test", n_rows=40, n_data_rows=1200, in_words="1,200 more rows")


@pytest.mark.parametrize(
    ("outcome", "heading", "sentence"),
    [
        (
            Outcome(
                kind="small first",
                sentence="Small first: “words” answers 71 %; at most 5 % wrong; the rest goes to the large model.",
                candidate="words",
                share_small=wilson(71, 100),
            ),
            "Small first: a linear model on words answers 71 % of requests, the large model the rest.",
            "“words” answers 71 %; at most 5 % wrong; the rest goes to the large model.",
        ),
        (
            Outcome(kind="keep the large model", sentence="Keep the large model: nothing can be certified."),
            "Keep the large model.",
            "Nothing can be certified.",
        ),
        (
            Outcome(kind="cannot be told yet", sentence="Cannot be told yet: label 1,200.", labels_needed=NEEDED),
            "It cannot be told yet: label about 1,200 more rows.",
            "Label 1,200.",
        ),
    ],
)
def test_the_first_thing_read_is_the_outcome_with_its_proof(
    make_report: Make, make_verdict: Build, outcome: Outcome, heading: str, sentence: str
) -> None:
    data = make_report(outcome=outcome)
    assert (plain(headline(data).heading), headline(data).sentence) == (heading, sentence)
    signed = make_verdict("small", passed=False).model_copy(
        update={"passed": True, "signed_by": "Ada", "because": "pilot", "signed_at": "2026-11-25T09:00:00Z"}
    )
    assert headline(data.model_copy(update={"verdicts": (signed,)})).heading.startswith("Go live")  # signed for
    alone = Outcome(kind="small alone", sentence="Small alone: it answers everything.", candidate="small")
    assert headline(make_report(outcome=alone)) == headline(make_report())


@pytest.mark.parametrize(
    ("passing", "failing", "chosen", "heading", "sentence"),
    [
        (("large",), ("small",), "large", "Keep the large model.", "The large model does: it is right on 87.5 %"),
        ((), ("small", "large"), None, "Keep the large model for now: nothing meets", "not meet them either"),
    ],
)
def test_keep_the_api_when_no_smaller_model_passes(
    make_report: Make,
    make_verdict: Build,
    passing: tuple[str, ...],
    failing: tuple[str, ...],
    chosen: str | None,
    heading: str,
    sentence: str,
) -> None:
    verdicts = tuple(make_verdict(name, passed=name in passing) for name in (*passing, *failing))
    found = headline(make_report(verdicts=verdicts, smallest_passing=chosen))
    assert found.heading.startswith(heading)
    assert sentence in plain(found.sentence)


@pytest.mark.parametrize(
    ("small", "large", "heading", "end"),
    [
        ("ccccfffc", "ccccfffc", "Keep the large model for now: no smaller model", "is measurably better."),
        (
            "ccccffff",
            "ffffcccc",
            "Keep the large model for now: no smaller",
            "“fine-tuned small model” is right more often.",
        ),
        ("ffffcccc", "ccccffff", "Keep the large model: no smaller one", "per 1,000 requests."),
    ],
)
def test_the_api_is_not_called_better_where_nothing_shows_it(
    make_report: Make, make_evaluation: Build, make_verdict: Build, small: str, large: str, heading: str, end: str
) -> None:
    pair = (make_evaluation("small", small, cost_usd_per_1k=1.0), make_evaluation("large", large, cost_usd_per_1k=2.0))
    verdicts = (make_verdict("small", passed=False),)
    found = headline(make_report(evaluations=pair, verdicts=verdicts, smallest_passing=None))
    assert found.heading.startswith(heading)
    assert found.sentence.endswith(end)


def test_keep_the_api_when_the_small_model_is_good_enough_but_dearer(make_report: Make, make_evaluation: Build) -> None:
    small = make_evaluation("small", "cccfffff", cost_usd_per_1k=3.0)
    large = make_evaluation("large", "ccccfffc", cost_usd_per_1k=2.0)
    found = headline(make_report(evaluations=(small, large)))
    assert found.heading == "Keep the large model: a smaller one is good enough here, but not cheaper."
    assert "$3.00 per 1,000 requests, more than the large path's $2.00" in found.sentence


@pytest.mark.parametrize(
    ("cost", "end"),
    [
        (1.98, "costs $1.98 per 1,000 requests, about what the large path costs ($2.00)."),
        (0.0, "costs $0.00 per 1,000 requests against $2.00 on the large path."),
        (0.5, "costs $0.50 per 1,000 requests instead of $2.00: 4.0 times cheaper."),
    ],
)
def test_costs_are_compared_with_the_large_path(
    make_report: Make, make_evaluation: Build, cost: float, end: str
) -> None:
    small = make_evaluation("small", "cccfffff", cost_usd_per_1k=cost)
    assert headline(make_report(evaluations=(small, make_report().evaluations[1]))).sentence.endswith(end)


def test_what_a_certificate_sends_on_is_answered_by_the_large_model(make_report: Make, make_verdict: Build) -> None:
    data = make_report()
    found = headline(data)
    assert plain(found.heading) == (
        "Go live: a small language model after fine-tuning answers 75 % of requests, the large model the rest."
    )
    assert plain(found.sentence) == (
        "Together, each request answered by one of them, they are right on 87.5 % (52.9 to 97.8) of 8 test requests "
        "and cost $0.55 per 1,000 requests instead of $2.00: 3.6 times cheaper."
    )
    assert not [sentence for sentence in comparisons(data) if sentence.startswith("Routed")]
    small, large, routed = make_report().evaluations
    rows = tuple(row.model_copy(update={"stage": "small"}) for row in routed.rows)
    routed = routed.model_copy(update={"rows": rows})
    everything = make_report(evaluations=(small, large, routed), verdicts=(make_verdict("routed", passed=False),))
    sentence = plain(comparisons(everything.model_copy(update={"smallest_passing": None}))[0])
    assert sentence.startswith("Routed, every request stays small, 75.0 % of them covered by the certificate")
    assert sentence.endswith("It does not meet the requirements.")


def test_who_is_not_certified_does_not_go_live_alone(make_report: Make, make_certificate: Build) -> None:
    refused = make_certificate(issued=False, why="Too few labels.", threshold=1.1)
    reason = ": the fine-tuned small model is good enough, but none of its answers are certified."
    beside = make_report(certificate=refused)
    assert headline(beside).heading == f"Run it beside the large model for now{reason}"
    alone = make_report(certificate=refused, evaluations=beside.evaluations[:1])
    assert headline(alone).heading == f"Label more rows first{reason}"


def test_without_a_large_model_nothing_is_kept(make_report: Make, make_verdict: Build) -> None:
    failing, small = make_verdict("small", passed=False), make_report().evaluations[0]
    found = headline(make_report(evaluations=(small,), verdicts=(failing,), smallest_passing=None))
    assert found.heading == "Do not go live yet: nothing meets the requirements."
    assert found.sentence.startswith("The nearest, “fine-tuned small model”, is right on 87.5")


@pytest.mark.parametrize(
    ("linear", "end"),
    [
        ("cccfffff", "is not measurably different: +0.0 points [−19.6, +19.6] on the same 8 rows."),
        ("ffffcccc", "is better still, by +87.5 points"),
        ("ccccffff", "is not measurably different: −12.5 points"),
        (None, "and that needs no language model."),
    ],
)
def test_a_linear_model_that_passes_is_enough(
    make_report: Make, make_evaluation: Build, make_verdict: Build, linear: str | None, end: str
) -> None:
    others = make_report().evaluations if linear else make_report().evaluations[1:]
    evaluations = (make_evaluation("words", linear or "cccfffff", cost_usd_per_1k=0.001), *others)
    verdicts = (make_verdict("words", passed=True), make_verdict("small", passed=True))
    data = make_report(evaluations=evaluations, verdicts=verdicts, smallest_passing="words", certificate=None)
    assert headline(data).heading == "Go live: a linear model is enough here."
    assert end in linear_note(data)
    assert linear_note(make_report()) == ""


def test_a_fine_tune_that_is_worse_than_a_linear_model_is_said_so_once(
    make_report: Make, make_evaluation: Build, make_verdict: Build
) -> None:
    linear = make_evaluation("words", "ccccffff", cost_usd_per_1k=0.001)
    small = make_evaluation("small", "ffffcccc", cost_usd_per_1k=0.05)
    verdicts = (make_verdict("words", passed=True),)
    data = make_report(evaluations=(linear, small), verdicts=verdicts, smallest_passing="words")
    assert "The fine-tuned small model is worse, by −100.0 points" in linear_note(data)
    assert comparisons(data) == ()


def test_the_paths_are_compared_in_words(make_report: Make, make_evaluation: Build, make_certificate: Build) -> None:
    none, alone = map(plain, comparisons(make_report()))
    assert alone == "Alone, “fine-tuned small model” is right on 87.5 % (52.9 to 97.8), at $0.050 per 1,000 requests."
    # Routed and large are right on the same rows: 1.96 · sqrt(1 / 10 / 10) = 0.196 (Agresti and Min).
    assert none == "No difference from the large model in right answers was found (+0.0 points [−19.6, +19.6])."
    (routed,) = map(plain, comparisons(make_report(smallest_passing=None, verdicts=())))
    assert routed == (
        "Routed, 75.0 % of requests stay small and the rest goes to the large model: right on 87.5 % (52.9 to 97.8), "
        "$0.55 per 1,000 requests instead of $2.00: 3.6 times cheaper."
    )
    small = make_evaluation("small", "ffffcccc", cost_usd_per_1k=0.05)
    large = make_evaluation("large", "ccccffff", cost_usd_per_1k=2.0)
    (loss,) = comparisons(make_report(evaluations=(small, large), certificate=None))
    assert loss.startswith(
        "The fine-tuned small model loses to the large model: it is right less often by 100.0 points"
    )
    (gain,) = comparisons(
        make_report(
            evaluations=(
                make_evaluation("small", "ccccffff", cost_usd_per_1k=0.05),
                make_evaluation("large", "ffffcccc", cost_usd_per_1k=2.0),
            )
        )
    )
    assert gain.startswith("“Fine-tuned small model” is right more often than the large model, by 100.0 points")
