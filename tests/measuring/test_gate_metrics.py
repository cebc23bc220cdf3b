"""Thresholds for accuracy, the task's own metrics, single labels or fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import CheckInputs, ConfidenceLevel, Gate, max_lower_bound, run_checks
from smallfirst.measuring.verdict import CheckResult
from smallfirst.tasks.task import PartCounts

Measured = Callable[..., Evaluation]
ONE = ConfidenceLevel(1)


def check(candidate: Evaluation, level: ConfidenceLevel = ONE, **thresholds: Any) -> CheckResult:
    gate = Gate(**thresholds)
    (result,) = run_checks(gate, CheckInputs(candidate, level, part_rows=gate.part_rows))
    return result


def test_accuracy_counts_the_rows_themselves(measured: Measured) -> None:
    forged = measured([True] * 90 + [False] * 10, accuracy=Estimate(value=1.0, low=1.0, high=1.0, n=100))
    # Wilson for 90 of 100 by hand: [0.826, 0.945].
    assert check(forged, accuracy_at_least=0.825).measured == "0.900 [0.826, 0.945] n=100"
    assert check(forged, accuracy_at_least=0.825).passed
    assert not check(forged, accuracy_at_least=0.827).passed


def test_rows_that_decide_nothing_foretell_how_many_more_are_needed(measured: Measured) -> None:
    candidate, others = measured([True] * 27 + [False] * 3), measured([True] * 24)
    alone, both = (
        Gate(accuracy_at_least=0.8).check(candidate, large=None, comparisons_made=1 / 0.6, beside=beside).checks[0]
        for beside in (None, others)
    )
    assert (alone.measured, alone.passed) == (both.measured, both.passed)
    assert (alone.more_rows, both.more_rows) == (370, 49)


def test_a_metric_passes_by_its_lower_end(measured: Measured) -> None:
    candidate = measured([True] * 100, measures={"token_f1": Estimate(value=0.9, low=0.86, high=0.93, n=100)})
    result = check(candidate, measures_at_least={"token_f1": 0.86})
    assert (result.requirement, result.measured, result.passed) == (
        "token_f1 at least 0.860",
        "0.900 [0.860, 0.930] n=100",
        True,
    )
    assert not check(candidate, measures_at_least={"token_f1": 0.87}).passed


def test_few_perfect_rows_show_no_more_than_so_many_can(measured: Measured) -> None:
    candidate = measured([True] * 20, measures={"field_f1": Estimate(value=1.0, low=1.0, high=1.0, n=20)})
    result = check(candidate, measures_at_least={"field_f1": 0.9})
    # 20 / (20 + 3.8415) = 0.839, and n / (n + 3.8415) reaches 0.9 at 34.6.
    assert result.measured == "1.000 [0.839, 1.000] n=20"
    assert result.advice == "so few rows cannot tell: more are needed"
    assert result.more_rows == 15


def test_a_perfect_share_is_shown_as_far_as_wilson_s_interval() -> None:
    assert max_lower_bound(35, ONE) == pytest.approx(wilson(35, 35).low)


def test_a_maximum_is_held_by_the_upper_end(measured: Measured) -> None:
    candidate = measured([True] * 400, measures={"invented": Estimate(value=0.02, low=0.01, high=0.04, n=400)})
    result = check(candidate, measures_at_most={"invented": 0.04})
    assert (result.requirement, result.measured, result.passed) == (
        "invented at most 0.04",
        "0.020 [0.010, 0.040] n=400",
        True,
    )
    missed = check(candidate, measures_at_most={"invented": 0.03})
    # The upper side must shrink from 0.02 to 0.01, four times the rows, for a chance of one in two.
    assert (missed.passed, missed.advice) == (False, "so few rows cannot tell: more are needed")
    assert 0.6 < (missed.chance or 0) <= 0.76
    assert (missed.more_rows or 0) > 1200
    near = check(candidate, measures_at_most={"invented": 0.015})  # missed by half of a standard error
    assert near.more_rows
    assert 0.1 < (near.chance or 0) < 0.5
    far = check(candidate, measures_at_most={"invented": 0.002})
    assert far.more_rows is None
    assert far.advice.startswith("more test rows are unlikely to show it (")


def test_no_error_in_few_rows_is_no_proof_of_none(measured: Measured) -> None:
    candidate = measured([True] * 20, measures={"invented": Estimate(value=0.0, low=0.0, high=0.0, n=20)})
    result = check(candidate, measures_at_most={"invented": 0.1})
    assert not result.passed
    assert result.measured == "0.000 [0.000, 0.161] n=20"  # 1 - 20 / 23.8415
    assert result.advice == "so few rows cannot tell: more are needed"
    assert result.more_rows == 15


def test_a_maximum_above_one_holds_a_cost(measured: Measured) -> None:
    candidate = measured([True] * 50, measures={"mean_cost": Estimate(value=2.0, low=1.5, high=2.6, n=50)})
    assert check(candidate, measures_at_most={"mean_cost": 2.6}).passed
    assert not check(candidate, measures_at_most={"mean_cost": 2.5}).passed
    assert not check(candidate, ConfidenceLevel(2), measures_at_most={"mean_cost": 2.6}).passed


@pytest.mark.parametrize(
    ("field", "text"), [("measures_at_least", "at least 0.500"), ("measures_at_most", "at most 0.5")]
)
def test_an_unknown_metric_fails_and_names_the_nearest_one(measured: Measured, field: str, text: str) -> None:
    result = check(measured([True] * 50), **{field: {"macro_f2": 0.5}})
    assert (result.passed, result.requirement) == (False, f"macro_f2 {text}")
    assert result.measured == 'small has no metric "macro_f2" — did you mean "macro_f1"?'
    assert result.advice == 'metrics of task "parity": macro_f1'


def test_a_metric_that_is_not_a_number_fails(measured: Measured) -> None:
    nan = float("nan")
    for stored in (Estimate(value=nan, low=nan, high=nan, n=50), Estimate(value=nan, low=0.9, high=0.9, n=50)):
        candidate = measured([True] * 50, measures={"token_f1": stored})
        for result in (
            check(candidate, measures_at_least={"token_f1": 0.0}),
            check(candidate, measures_at_most={"token_f1": 9}),
        ):
            assert not result.passed
            assert result.advice.startswith("the value is not a number")


def part(name: str, right: int, gold: int) -> PartCounts:
    return PartCounts(name=name, n_gold=gold, n_said=gold, n_right=right)


def test_the_weakest_part_decides_at_a_level_for_all_of_them(measured: Measured) -> None:
    candidate = measured([True], parts=(part("pin", 95, 100), part("card", 90, 100), part("fee", 200, 200)))
    # Three parts: 1 - 0.05/3, z = 2.394; 90 of 100: centre (0.9 + 0.02866)/1.05731 = 0.87832,
    # half = 2.394/1.05731 · √(0.0009 + 5.7312/40000) = 0.07313.
    low = 0.87832 - 0.07313
    assert check(candidate, each_part_at_least=low - 0.0005, part_rows=20).passed
    result = check(candidate, each_part_at_least=low + 0.0005, part_rows=20)
    assert not result.passed
    assert (
        result.measured
        == 'worst of 3 is "card": 0.900 [0.805, 0.951] n=100 (98.33 % interval: 3 parts share the level)'
    )
    assert result.advice == 'not shown by the rows there are: "card" (n=100)'


def test_weak_parts_and_short_ones_are_told_apart(measured: Measured) -> None:
    candidate = measured([True], parts=(part("pin", 60, 100), part("card", 28, 30), part("fee", 500, 500)))
    result = check(candidate, each_part_at_least=0.8, part_rows=20)
    assert not result.passed
    weak, short = result.advice.split("; ")
    assert (weak, short) == ('below the threshold: "pin" 0.600', 'not shown by the rows there are: "card" (n=30)')
    assert result.more_rows is None  # 60 of 100 is far below 0.8


def test_rare_parts_are_named_and_not_judged(measured: Measured) -> None:
    candidate = measured([True], parts=(part("pin", 98, 100), part("odd", 0, 4)))
    result = check(candidate, each_part_at_least=0.9, part_rows=20)
    assert result.passed
    assert result.advice == 'not checked, with fewer than 20 rows: "odd" (n=4)'
    alone = check(measured([True], parts=(part("odd", 4, 4),)), each_part_at_least=0.9, part_rows=20)
    assert (alone.passed, alone.measured) == (False, "no part has 20 rows")


def test_a_long_list_of_parts_is_cut(measured: Measured) -> None:
    parts = tuple(part(f"part{i}", 0, 30) for i in range(8))
    result = check(measured([True], parts=parts), each_part_at_least=0.9, part_rows=20)
    assert result.advice.endswith('"part3" 0.000, "part4" 0.000, and 3 more')


def test_one_named_part_needs_no_correction(measured: Measured) -> None:
    candidate = measured([True], parts=(part("pin", 90, 100), part("card", 10, 100)))
    low = wilson(90, 100).low
    assert check(candidate, parts_at_least={"pin": low}).passed
    result = check(candidate, parts_at_least={"pin": low + 0.001})
    assert (result.passed, result.measured) == (False, "0.900 [0.826, 0.945] n=100")


def test_an_unknown_part_fails_and_names_the_near_one(measured: Measured) -> None:
    result = check(measured([True] * 50), parts_at_least={"evem": 0.5})
    assert not result.passed
    assert result.measured == 'task "parity" has no part "evem" — did you mean "even"?'
    assert result.advice == 'its parts: "even", "odd"'


def test_a_part_that_was_never_there_shows_nothing(measured: Measured) -> None:
    result = check(measured([True], parts=(part("pin", 0, 0),)), parts_at_least={"pin": 0.0})
    assert (result.passed, result.advice) == (False, "no row was measured")


def test_more_right_than_there_counts_as_all(measured: Measured) -> None:
    """A label right under another gold answer can be right more often than it was there."""
    found = check(measured([True], parts=(part("pin", 25, 20),)), parts_at_least={"pin": 0.5}).estimate
    assert found == wilson(20, 20)


def test_a_task_without_parts_cannot_pass(measured: Measured) -> None:
    candidate = measured([True] * 50, parts=())
    each, named = check(candidate, each_part_at_least=0.1), check(candidate, parts_at_least={"x": 0.1})
    assert (each.passed, each.measured, named.passed, named.advice) == (
        False,
        "no part has 20 rows",
        False,
        "its parts: none",
    )
    assert each.advice.endswith("remove the threshold from the gate")
