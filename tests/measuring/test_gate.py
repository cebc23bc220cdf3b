"""The gate's verdict: its checks in order, what is refused, and older verdicts read back."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.gate import evaluation

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import parse_record
from smallfirst.base.stats.intervals import wilson
from smallfirst.data.copies import Leak, LeakReport
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import CHECKS, CheckInputs, Gate, Requirement
from smallfirst.measuring.verdict import CheckResult


def of(right: int, n: int, **fields: Any) -> Evaluation:
    """An evaluation with `right` of `n` rows right, the wrong ones last."""
    return evaluation([True] * right + [False] * (n - right), **fields)


def only_result(gate: Gate, candidate: Evaluation, **inputs: Any) -> CheckResult:
    verdict = gate.check(candidate, **{"large": None, **inputs})
    (result,) = verdict.checks
    assert verdict.passed == result.passed
    return result


def test_accuracy_passes_when_the_lower_end_of_the_interval_reaches_the_threshold() -> None:
    # Wilson for 90 of 100 by hand: z² = 3.8415, centre = (0.9 + 0.0192)/1.0384 = 0.8852,
    # half = 1.96/1.0384 · √(0.09/100 + 3.8415/40000) = 0.0596, so [0.826, 0.945].
    result = only_result(Gate(accuracy_at_least=0.825), of(90, 100))
    assert result == CheckResult(
        name="accuracy_at_least",
        threshold=0.825,
        requirement="accuracy at least 0.825",
        measured="0.900 [0.826, 0.945] n=100",
        passed=True,
        estimate=wilson(90, 100),
    )
    assert not only_result(Gate(accuracy_at_least=0.83), of(90, 100)).passed


@pytest.mark.parametrize(
    ("right", "n", "threshold", "chance", "likely"),
    [
        # At 11/12 right 70 rows more would do in one of two cases: three of four take more.
        (44, 48, 0.85, 0.75, True),
        # The value itself is the threshold: the truth is as likely below it as above.
        (90, 100, 0.9, 0.34, True),
        # 0.9 is missed by one standard error: no reason to call it hopeless.
        (87, 100, 0.9, 0.09, True),
        (44, 48, 0.99, 0.0, False),
    ],
)
def test_a_failed_check_says_how_likely_more_rows_are_to_show_it(
    right: int, n: int, threshold: float, chance: float, likely: bool
) -> None:
    result = only_result(Gate(accuracy_at_least=threshold), of(right, n))
    assert result.chance == pytest.approx(chance, abs=0.02)
    assert (result.more_rows is not None) == likely
    few = "so few rows cannot tell: more are needed"
    assert result.advice == few if likely else result.advice.startswith("more test rows are unlikely to show it (0 %)")


def test_comparing_more_candidates_widens_the_interval_and_says_so() -> None:
    # 0.05 / 5 = 0.01, z = 2.576: centre (0.9 + 0.0332)/1.0663 = 0.8751, half 0.0789.
    gate, rows = Gate(accuracy_at_least=0.80), of(90, 100)
    assert only_result(gate, rows).passed
    result = only_result(gate, rows, comparisons_made=5)
    assert not result.passed
    assert result.measured == "0.900 [0.796, 0.954] n=100 (99 % interval: plans share the level)"


ALL = Gate(
    cost_usd_per_1k_at_most=1,
    p95_ms_at_most=100,
    p50_ms_at_most=50,
    score_not_worse_than_large_by=0.1,
    not_worse_than_large_by=0.1,
    parts_at_least={"a": 0.5},
    each_part_at_least=0.5,
    measures_at_most={"invented": 0.1},
    measures_at_least={"token_f1": 0.5},
    macro_f1_at_least=0.5,
    accuracy_at_least=0.5,
)


def test_all_checks_stand_in_one_verdict_in_a_fixed_order() -> None:
    verdict = ALL.check(of(90, 100), large=None)
    assert [(result.passed, result.requirement) for result in verdict.checks] == [
        (True, "accuracy at least 0.500"),
        (True, "macro-F1 at least 0.500"),
        (False, "token_f1 at least 0.500"),
        (False, "invented at most 0.1"),
        (True, "recall of each part at least 0.500"),
        (False, 'recall of "a" at least 0.500'),
        (False, "at most 0.100 less accurate than the large model"),
        (False, "score at most 0.100 below the large model's"),
        (True, "p50 latency at most 50 ms"),
        (True, "p95 latency at most 100 ms"),
        (True, "cost at most $1 per 1,000"),
    ]
    assert not verdict.passed
    assert all(result.advice for result in verdict.failed_checks)


def test_a_gate_without_a_threshold_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Gate(part_rows=50).check(of(9, 10), large=None)
    assert str(caught.value) == (
        "the gate declares no threshold, so anything would pass\n"
        "  next: declare at least one in task.yaml, for example  gate: {accuracy_at_least: 0.9}"
    )


def test_thresholds_are_about_the_rows_without_a_copy() -> None:
    whole = of(80, 100)  # the first 80 are right
    copies = tuple(Leak(key=row.key, test="test:1", train="train:1") for row in whole.rows[:40])
    leaks = LeakReport(n_test=100, test_fingerprint=whole.dataset_fingerprint, exact=copies)
    clean = whole.model_copy(update={"rows": whole.rows[40:]})
    assert Gate(accuracy_at_least=0.7).check(whole, large=None).passed
    verdict = Gate(accuracy_at_least=0.7).check(whole, large=None, leaks=leaks, clean=clean)
    assert [(result.name, result.passed) for result in verdict.checks] == [
        ("accuracy_at_least", False),  # 40 of 60
        ("clean_rows", True),
    ]
    assert Gate(accuracy_at_least=0.5).check(whole, large=None, leaks=leaks, clean=clean).passed


def test_a_new_check_is_a_field_and_one_registered_function(monkeypatch: pytest.MonkeyPatch) -> None:
    class LargerGate(Gate):
        rows_at_least: int | None = None

    def check_rows(minimum: int, inputs: CheckInputs) -> CheckResult:
        n = len(inputs.candidate.rows)
        return Requirement("rows_at_least", minimum, f"at least {minimum} rows").result(f"n={n}", passed=n >= minimum)

    monkeypatch.setitem(CHECKS, "rows_at_least", check_rows)
    verdict = LargerGate(accuracy_at_least=0.5, rows_at_least=50).check(of(9, 10), large=None)
    assert [result.requirement for result in verdict.failed_checks] == ["at least 50 rows"]


@pytest.mark.parametrize("made", [0, -1])
def test_fewer_than_one_comparison_is_refused(made: int) -> None:
    with pytest.raises(ConfigError, match=f"comparisons_made must be at least 1, got {made}"):
        Gate(accuracy_at_least=0.5).check(of(9, 10), large=None, comparisons_made=made)


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("accuracy_at_least", float("nan")),
        ("accuracy_at_least", 91),
        ("measures_at_most", {"missing": float("nan")}),
        ("p95_ms_at_most", 0),
        ("part_rows", 0),
        ("not_worse_than_large_by", -0.1),
    ],
)
def test_a_threshold_out_of_range_is_refused(name: str, threshold: object) -> None:
    with pytest.raises(ConfigError, match=name):
        parse_record(Gate, {name: threshold}, where="task.yaml")
