"""The headline, and the sentences that compare the paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fixtures.report import outcome

from smallfirst.gate.outcome import Outcome
from smallfirst.report.data import ReportData
from smallfirst.report.text.verdict import comparisons, headline, lighter_note

Make = Callable[..., ReportData]
Build = Callable[..., Any]


def plain(text: str) -> str:
    return text.replace("\xa0", " ")


def test_the_headline_is_the_outcomes_and_before_one_nothing_is_decided(make_report: Make) -> None:
    for kind in ("small alone", "small first"):
        found = headline(make_report(outcome=outcome(kind)))
        assert (found.heading, found.sentence) == (outcome(kind).heading, outcome(kind).proof)
    nothing = Outcome(kind="keep the large model", why="nothing can be certified", large=True)
    assert headline(make_report(outcome=nothing)) == ("Keep the large model.", "Nothing can be certified.")
    assert headline(make_report(smallest_passing=None)).heading == "Nothing is decided yet."
    passing = "Nothing is decided yet: the fine-tuned small model is good enough by the gate."
    assert headline(make_report()).heading == passing


@pytest.mark.parametrize(
    ("cost", "end"),
    [
        (3.0, "$3.00 per 1,000 requests, more than the large path's $2.00."),
        (1.98, "$1.98 per 1,000 requests, about what the large path costs ($2.00)."),
        (0.0, "$0.00 per 1,000 requests against $2.00 on the large path."),
        (0.5, "$0.50 per 1,000 requests instead of $2.00: 4.0 times cheaper."),
    ],
)
def test_the_cost_of_the_router_is_compared_with_the_large_path(make_report: Make, cost: float, end: str) -> None:
    small, large, routed = make_report().evaluations
    routed = routed.model_copy(update={"cost_usd_per_1k": cost})
    data = make_report(evaluations=(small, large, routed), outcome=outcome("small alone"))
    assert plain(comparisons(data)[-1]).endswith(end)


def test_the_router_is_compared_where_it_does_not_answer(make_report: Make, make_verdict: Build) -> None:
    data = make_report(outcome=outcome())
    assert not [sentence for sentence in comparisons(data) if sentence.startswith("Routed")]
    small, large, routed = make_report().evaluations
    rows = tuple(row.model_copy(update={"stage": "small"}) for row in routed.rows)
    routed = routed.model_copy(update={"rows": rows})
    everything = make_report(evaluations=(small, large, routed), verdicts=(make_verdict("routed", passed=False),))
    sentence = plain(comparisons(everything.model_copy(update={"smallest_passing": None}))[0])
    assert sentence.startswith("Routed, every request stays small, 75.0 % of them covered by the certificate")
    assert sentence.endswith("It does not meet the requirements.")


@pytest.mark.parametrize(
    ("linear", "end"),
    [
        ("cccfffff", "is not measurably different: +0.0 points [−19.6, +19.6] on the same 8 rows."),
        ("ffffcccc", "is better still, by +87.5 points"),
        ("ccccffff", "is not measurably different: −12.5 points"),
        (None, "no language model is needed for it."),
    ],
)
def test_a_linear_model_that_goes_live_is_enough(
    make_report: Make, make_evaluation: Build, linear: str | None, end: str
) -> None:
    others = make_report().evaluations if linear else make_report().evaluations[1:]
    evaluations = (make_evaluation("words", linear or "cccfffff", cost_usd_per_1k=0.001), *others)
    found = lighter_note(make_report(evaluations=evaluations, outcome=outcome("small alone", "words")))
    assert found is not None
    assert found.heading == "A linear model is enough here"
    assert end in found.sentence


def test_a_note_on_lighter_models_is_the_candidates_own(make_report: Make) -> None:
    found = lighter_note(make_report(outcome=outcome("small first", "tagger")))
    assert found is not None
    assert found.heading == "Marking the fields in the text is enough here"
    nothing = Outcome(kind="cannot be told yet", title="words + linear")
    assert [lighter_note(make_report(outcome=one)) for one in (None, outcome(), nothing)] == [None] * 3


def test_a_fine_tune_that_is_worse_than_a_linear_model_is_said_so_once(
    make_report: Make, make_evaluation: Build
) -> None:
    linear = make_evaluation("words", "ccccffff", cost_usd_per_1k=0.001)
    small = make_evaluation("small", "ffffcccc", cost_usd_per_1k=0.05)
    data = make_report(evaluations=(linear, small), outcome=outcome("small alone", "words"))
    assert "The fine-tuned small model is worse, by −100.0 points" in lighter_note(data).sentence
    assert comparisons(data) == ()


def test_the_paths_are_compared_in_words(make_report: Make, make_evaluation: Build, make_certificate: Build) -> None:
    none, alone = map(plain, comparisons(make_report(outcome=outcome())))
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
