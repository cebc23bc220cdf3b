"""What to do, warnings, and what would change the verdict. Figures by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fixtures.report import outcome

from smallfirst.base.stats.intervals import wilson
from smallfirst.data.copies import Leak, LeakReport
from smallfirst.measuring.learning_curve import LearningPoint
from smallfirst.measuring.outcome import LabelsNeeded, Outcome
from smallfirst.path.report.data import LeakEffect, ReportData
from smallfirst.path.report.economics import path_costs
from smallfirst.path.report.sentences import against_large, leak_sentence, outlook, recommendations, warnings

Make = Callable[..., ReportData]
Build = Callable[..., Any]


def test_what_answers_is_compared_with_the_large_model(make_report: Make, make_evaluation: Build) -> None:
    # Routed and large are right on the same rows: 1.96 · sqrt(1 / 10 / 10) = 0.196 (Agresti and Min).
    same = against_large(make_report(outcome=outcome())).replace("\xa0", " ")
    assert same == "No difference from the large model in right answers was found (+0.0 points [−19.6, +19.6])."
    small = make_evaluation("small", "ccccffff", cost_usd_per_1k=0.05)
    large = make_evaluation("large", "ffffcccc", cost_usd_per_1k=2.0)
    gain = against_large(make_report(evaluations=(small, large), outcome=outcome("small alone")))
    assert gain.startswith("“fine-tuned small model” is right more often than the large model, by +100.0 points")
    assert against_large(make_report(evaluations=(small,), outcome=outcome("small alone"))) == ""


def advised(data: ReportData) -> tuple[str, ...]:
    return tuple(recommendations(data, path_costs(data.evaluations, training_usd=3.9)))


KEPT = Outcome(kind="keep the large model", large=True)
LIVE = "It is live as main.default.tickets version 1 @champion."


def test_what_is_live_is_named_with_what_it_saves(make_report: Make, make_evaluation: Build) -> None:
    alone = outcome("small alone")
    # 10,000 requests at $2.00 against $0.050 per 1,000.
    said = advised(make_report(outcome=alone))[0]
    assert said == f"{LIVE} At 10,000 requests a month it saves about $19.50 a month."
    # Routed costs $0.55 per 1,000: 10,000 requests save 10 · ($2.00 - $0.55).
    assert advised(make_report(outcome=outcome()))[0].endswith("it saves about $14.50 a month.")
    small, large = make_report().evaluations[:2]
    assert advised(make_report(evaluations=(small,), outcome=alone))[0].endswith("the large model was not measured.")
    dear = make_evaluation("small", "cccfffff", cost_usd_per_1k=3.0)
    assert advised(make_report(evaluations=(dear, large), outcome=alone))[0].endswith("nothing at today's prices.")
    assert advised(make_report())[0] == "Let it be decided: smallfirst calibrate task.yaml."
    ready = alone.model_copy(update={"alias": "", "version": None})
    assert advised(make_report(outcome=ready))[0].startswith("Promote it: smallfirst promote task.yaml.")


def test_a_smaller_candidate_that_passes_as_well_is_named(make_report: Make, make_evaluation: Build) -> None:
    words = make_evaluation("words", "cccfffff", cost_usd_per_1k=0.001)
    data = make_report(evaluations=(words, *make_report().evaluations), smallest_passing="words", outcome=outcome())
    assert advised(data)[1].replace("\xa0", " ") == (
        "Consider “words + linear” (leave routing.small out): it meets the requirements as well, right on "
        "87.5 % (52.9 to 97.8) at $0.0010 per 1,000 requests."
    )


def test_if_nothing_passes_the_nearest_path_is_named_with_its_advice(make_report: Make, make_verdict: Build) -> None:
    failing = make_verdict("small", passed=False)
    nearest = (
        "Keep sending every request to the large model. The nearest, “fine-tuned small model”, fails "
        "“accuracy at least 0.700”: label 40 more rows."
    )
    verdicts = (failing, make_verdict("large", passed=False))
    assert advised(make_report(verdicts=verdicts, smallest_passing=None, outcome=KEPT))[0] == nearest
    # Of several failed checks the one that is furthest off is named: 0.529 of 0.700 before 0.529 of 0.600.
    closer = failing.checks[0].model_copy(update={"requirement": "recall of fee", "threshold": 0.6})
    both = failing.model_copy(update={"checks": (closer, *failing.checks)})
    assert advised(make_report(verdicts=(both,), smallest_passing=None, outcome=KEPT))[0] == nearest
    assert advised(make_report(verdicts=(), smallest_passing=None, outcome=KEPT))[0] == (
        "Keep sending every request to the large model."
    )


def test_leaks_are_warned_of_where_too_few_other_rows_are_left(make_report: Make) -> None:
    many = make_report(leaks=LeakEffect(n_leaked=950, n_test=1000))
    most = make_report(leaks=LeakEffect(n_leaked=951, n_test=1000))
    assert [*warnings(many)] == []
    assert next(warnings(most)).endswith("the gate judges the others. Too few other rows are left to judge by: 49.")
    assert leak_sentence(make_report(leaks=LeakEffect(n_leaked=0, n_test=9))).startswith("None of the 9 test rows")


def test_the_rows_that_would_decide_it_come_first_with_their_price(make_report: Make) -> None:
    needed = LabelsNeeded(n_data_rows=560, chance=0.75, files={"rows.jsonl": 560}, usd=28.0)
    undecided = Outcome(kind="cannot be told yet", labels_needed=needed, large=True)
    assert advised(make_report(outcome=undecided))[0] == (
        "Label about 560 more rows in rows.jsonl (chance 75 %), for about $28.00 by a person, and run it again. Until "
        "then the large model answers."
    )


def test_other_rows_other_splits_and_overrides_are_warned_of(make_report: Make, make_verdict: Build) -> None:
    small, large, _ = make_report().evaluations
    other = large.model_copy(update={"dataset_fingerprint": "other", "split": "calibration"})
    signed = make_verdict("small", passed=False).model_copy(
        update={"passed": True, "signed_by": "Ada", "because": "pilot", "signed_at": "2026-11-25T09:00:00Z"}
    )
    assert [*warnings(make_report(evaluations=(small, other), verdicts=(signed,)))] == [
        "The paths were not all measured on the same rows; compare them with care.",
        "Not measured on test rows: large.",
        "“fine-tuned small model” passed by a signed override, not by measurement: Ada, because “pilot”.",
    ]


def test_the_effect_of_leaks_is_counted_on_the_rows_that_are_left(make_report: Make) -> None:
    leak = Leak(key="row0", test="test.jsonl:1", train="train.jsonl:9")
    report = LeakReport(n_test=8, test_fingerprint="f", exact=(leak,))
    found = LeakEffect.measure(make_report().evaluations[0], report)
    # 7 of 8 right; without row 0, which was right, 6 of 7.
    assert (found.n_leaked, found.accuracy_with, found.accuracy_without) == (1, wilson(7, 8), wilson(6, 7))
    said = leak_sentence(make_report(leaks=found)).replace("\xa0", " ")
    assert said.startswith("1 of 8 test rows (12.5 %) are also in the training rows; the gate judges the others.")
    assert "on 87.5 % (52.9 to 97.8) with them and on 85.7 %" in said


def said(data: ReportData) -> str:
    return " | ".join(outlook(data)).replace("\xa0", " ")


def test_the_accuracy_threshold_could_be_moved_so_far(make_report: Make, make_verdict: Build) -> None:
    passing = said(make_report())
    assert "Up to an accuracy threshold of 0.529 (now 0.700) “fine-tuned small model” would still pass." in passing
    failing = said(make_report(verdicts=(make_verdict("small", passed=False),), smallest_passing=None))
    assert "Up to an accuracy threshold of 0.529 (now 0.700) “fine-tuned small model” would pass." in failing


def test_more_rows_are_forecast_or_the_reason_against_it_is_given(make_report: Make) -> None:
    def with_curve(*shares: float) -> str:
        rows = (250, 1000, 2000, 4000)
        points = (
            LearningPoint(n_rows=n, candidate="small", accuracy=wilson(round(2000 * share), 2000))
            for n, share in zip(rows, shares, strict=False)
        )
        return said(make_report(learning_curve=tuple(points)))

    rising = with_curve(0.55, 0.7, 0.76, 0.80)
    assert "From 2,000 to 4,000 training rows “fine-tuned small model” changed by +4.0 points, to 80.0 %" in rising
    assert "Forecast: 8,000 rows would give about 0.8" in rising
    assert "No forecast for twice the rows: 3 numbers of rows are needed and 2 were measured." in with_curve(0.55, 0.7)
    assert "training rows “fine-tuned" not in with_curve(0.55)
