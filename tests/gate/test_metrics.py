"""Thresholds for accuracy, the task's own metrics, single labels or fields."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import ConfidenceLevel
from smallfirst.gate.metrics import (
    check_accuracy,
    check_each_part,
    check_metric,
    check_named_part,
    max_lower_bound,
)
from smallfirst.stats.intervals import Estimate, wilson
from smallfirst.tasks.task import PartCounts

Measured = Callable[..., Evaluation]
ONE = ConfidenceLevel(1)


def test_accuracy_counts_the_rows_themselves(measured: Measured) -> None:
    forged = measured([True] * 90 + [False] * 10, accuracy=Estimate(value=1.0, low=1.0, high=1.0, n=100))
    # Wilson for 90 of 100 by hand: [0.826, 0.945].
    assert check_accuracy(0.825, forged, ONE).measured == "0.900 [0.826, 0.945] n=100"
    assert check_accuracy(0.825, forged, ONE).passed
    assert not check_accuracy(0.827, forged, ONE).passed


def test_a_metric_passes_by_its_lower_end(measured: Measured) -> None:
    candidate = measured([True] * 100, measures={"token_f1": Estimate(value=0.9, low=0.86, high=0.93, n=100)})
    result = check_metric("token_f1", 0.86, candidate, ONE)
    assert (result.requirement, result.measured, result.passed) == (
        "token_f1 at least 0.860",
        "0.900 [0.860, 0.930] n=100",
        True,
    )
    assert not check_metric("token_f1", 0.87, candidate, ONE).passed


def test_few_perfect_rows_show_no_more_than_so_many_can(measured: Measured) -> None:
    candidate = measured([True] * 20, measures={"field_f1": Estimate(value=1.0, low=1.0, high=1.0, n=20)})
    result = check_metric("field_f1", 0.9, candidate, ONE)
    # 20 / (20 + 3.8415) = 0.839, and n / (n + 3.8415) reaches 0.9 at 34.6.
    assert result.measured == "1.000 [0.839, 1.000] n=20"
    assert result.advice == "so few rows cannot tell: more are needed"
    assert result.more_rows == 15


def test_a_perfect_share_is_shown_as_far_as_wilson_s_interval() -> None:
    assert max_lower_bound(35, ONE) == pytest.approx(wilson(35, 35).low)


def test_a_maximum_is_held_by_the_upper_end(measured: Measured) -> None:
    candidate = measured([True] * 400, measures={"invented": Estimate(value=0.02, low=0.01, high=0.04, n=400)})
    result = check_metric("invented", 0.04, candidate, ONE, at_most=True)
    assert (result.requirement, result.measured, result.passed) == (
        "invented at most 0.04",
        "0.020 [0.010, 0.040] n=400",
        True,
    )
    missed = check_metric("invented", 0.03, candidate, ONE, at_most=True)
    # The upper side must shrink from 0.02 to 0.01, four times the rows, for a chance of one in two.
    assert (missed.passed, missed.advice) == (False, "so few rows cannot tell: more are needed")
    assert 0.6 < (missed.chance or 0) <= 0.76
    assert (missed.more_rows or 0) > 1200
    near = check_metric("invented", 0.015, candidate, ONE, at_most=True)  # missed by half of a standard error
    assert near.more_rows
    assert 0.1 < (near.chance or 0) < 0.5
    far = check_metric("invented", 0.002, candidate, ONE, at_most=True)
    assert far.more_rows is None
    assert far.advice.startswith("more test rows are unlikely to show it (")


def test_no_error_in_few_rows_is_no_proof_of_none(measured: Measured) -> None:
    candidate = measured([True] * 20, measures={"invented": Estimate(value=0.0, low=0.0, high=0.0, n=20)})
    result = check_metric("invented", 0.1, candidate, ONE, at_most=True)
    assert not result.passed
    assert result.measured == "0.000 [0.000, 0.161] n=20"  # 1 - 20 / 23.8415
    assert result.advice == "so few rows cannot tell: more are needed"
    assert result.more_rows == 15


def test_a_maximum_above_one_holds_a_cost(measured: Measured) -> None:
    candidate = measured([True] * 50, measures={"mean_cost": Estimate(value=2.0, low=1.5, high=2.6, n=50)})
    assert check_metric("mean_cost", 2.6, candidate, ONE, at_most=True).passed
    assert not check_metric("mean_cost", 2.5, candidate, ONE, at_most=True).passed
    assert not check_metric("mean_cost", 2.6, candidate, ConfidenceLevel(2), at_most=True).passed


@pytest.mark.parametrize(("at_most", "text"), [(False, "at least 0.500"), (True, "at most 0.5")])
def test_an_unknown_metric_fails_and_names_the_nearest_one(measured: Measured, at_most: bool, text: str) -> None:
    result = check_metric("macro_f2", 0.5, measured([True] * 50), ONE, at_most=at_most)
    assert (result.passed, result.requirement) == (False, f"macro_f2 {text}")
    assert result.measured == 'small has no metric "macro_f2" — did you mean "macro_f1"?'
    assert result.advice == 'metrics of task "parity": macro_f1'


def test_accuracy_by_name_is_sent_to_its_own_threshold(measured: Measured) -> None:
    result = check_metric("accuracy", 0.5, measured([True] * 50), ONE)
    assert (result.passed, result.advice) == (False, "use its own threshold: accuracy_at_least")


def test_a_metric_that_is_not_a_number_fails(measured: Measured) -> None:
    nan = float("nan")
    for stored in (Estimate(value=nan, low=nan, high=nan, n=50), Estimate(value=nan, low=0.9, high=0.9, n=50)):
        candidate = measured([True] * 50, measures={"token_f1": stored})
        for result in (
            check_metric("token_f1", 0.0, candidate, ONE),
            check_metric("token_f1", 9, candidate, ONE, at_most=True),
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
    assert check_each_part(low - 0.0005, candidate, ONE, part_rows=20).passed
    result = check_each_part(low + 0.0005, candidate, ONE, part_rows=20)
    assert not result.passed
    assert (
        result.measured
        == 'worst of 3 is "card": 0.900 [0.805, 0.951] n=100 (98.33 % interval: 3 parts share the level)'
    )
    assert result.advice == 'not shown by the rows there are: "card" (n=100)'


def test_weak_parts_and_short_ones_are_told_apart(measured: Measured) -> None:
    candidate = measured([True], parts=(part("pin", 60, 100), part("card", 28, 30), part("fee", 500, 500)))
    result = check_each_part(0.8, candidate, ONE, part_rows=20)
    assert not result.passed
    weak, short = result.advice.split("; ")
    assert (weak, short) == ('below the threshold: "pin" 0.600', 'not shown by the rows there are: "card" (n=30)')
    assert result.more_rows is None  # 60 of 100 is far below 0.8


def test_rare_parts_are_named_and_not_judged(measured: Measured) -> None:
    candidate = measured([True], parts=(part("pin", 98, 100), part("odd", 0, 4)))
    result = check_each_part(0.9, candidate, ONE, part_rows=20)
    assert result.passed
    assert result.advice == 'not checked, with fewer than 20 rows: "odd" (n=4)'
    alone = check_each_part(0.9, measured([True], parts=(part("odd", 4, 4),)), ONE, part_rows=20)
    assert (alone.passed, alone.measured) == (False, "no part has 20 rows")


def test_a_long_list_of_parts_is_cut(measured: Measured) -> None:
    parts = tuple(part(f"part{i}", 0, 30) for i in range(8))
    result = check_each_part(0.9, measured([True], parts=parts), ONE, part_rows=20)
    assert result.advice.endswith('"part3" 0.000, "part4" 0.000, and 3 more')


def test_one_named_part_needs_no_correction(measured: Measured) -> None:
    candidate = measured([True], parts=(part("pin", 90, 100), part("card", 10, 100)))
    low = wilson(90, 100).low
    assert check_named_part("pin", low, candidate, ONE).passed
    result = check_named_part("pin", low + 0.001, candidate, ONE)
    assert (result.passed, result.measured) == (False, "0.900 [0.826, 0.945] n=100")


def test_an_unknown_part_fails_and_names_the_near_one(measured: Measured) -> None:
    result = check_named_part("evem", 0.5, measured([True] * 50), ONE)
    assert not result.passed
    assert result.measured == 'task "parity" has no part "evem" — did you mean "even"?'
    assert result.advice == 'its parts: "even", "odd"'


def test_a_part_that_was_never_there_shows_nothing(measured: Measured) -> None:
    result = check_named_part("pin", 0.0, measured([True], parts=(part("pin", 0, 0),)), ONE)
    assert (result.passed, result.advice) == (False, "no row was measured")


def test_more_right_than_there_counts_as_all(measured: Measured) -> None:
    """A label right under another gold answer can be right more often than it was there."""
    found = check_named_part("pin", 0.5, measured([True], parts=(part("pin", 25, 20),)), ONE).estimate
    assert found == wilson(20, 20)


def test_a_task_without_parts_cannot_pass(measured: Measured) -> None:
    candidate = measured([True] * 50, parts=())
    for result in (check_each_part(0.1, candidate, ONE, part_rows=1), check_named_part("x", 0.1, candidate, ONE)):
        assert not result.passed
        assert result.measured == 'task "parity" has no labels or fields to check'
