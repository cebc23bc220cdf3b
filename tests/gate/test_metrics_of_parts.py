"""Recall of single labels or fields."""

from __future__ import annotations

from collections.abc import Callable

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import ConfidenceLevel
from smallfirst.gate.metrics import check_each_part, check_named_part
from smallfirst.stats.intervals import wilson
from smallfirst.tasks.task import PartCounts

Measured = Callable[..., Evaluation]
ONE = ConfidenceLevel(1)


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
    assert result.advice.startswith('not shown by the rows there are: "card" (n=100, label about ')


def test_weak_parts_and_short_ones_are_told_apart(measured: Measured) -> None:
    candidate = measured([True], parts=(part("pin", 60, 100), part("card", 28, 30), part("fee", 500, 500)))
    result = check_each_part(0.8, candidate, ONE, part_rows=20)
    assert not result.passed
    weak, short = result.advice.split("; ")
    assert weak == 'below the threshold, where only a better model would help: "pin" 0.600'
    assert short.startswith('not shown by the rows there are: "card" (n=30, label about ')


def test_rare_parts_are_named_and_not_judged(measured: Measured) -> None:
    candidate = measured([True], parts=(part("pin", 98, 100), part("odd", 0, 4)))
    result = check_each_part(0.9, candidate, ONE, part_rows=20)
    assert result.passed
    # With one part looked at, 0.9 · 3.8415 / 0.1 = 34.6 perfect rows show 0.9: 35 - 4.
    assert result.advice == 'not checked, with fewer than 20 rows: "odd" (n=4, label about 31 more)'
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
