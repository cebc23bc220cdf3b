"""Comparisons with the large model, row by row."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import CheckInputs, ConfidenceLevel, Gate, run_checks
from smallfirst.measuring.verdict import CheckResult

Measured = Callable[..., Evaluation]
MARGINS = ("not_worse_than_large_by", "score_not_worse_than_large_by")


def check(small: Evaluation, large: Evaluation | None, margin: float, name: str = MARGINS[0]) -> CheckResult:
    (result,) = run_checks(Gate.model_validate({name: margin}), CheckInputs(small, ConfidenceLevel(1), large))
    return result


def test_the_same_rows_are_compared(measured: Measured) -> None:
    small = measured([False] * 2 + [True] * 98)
    large = measured([True] * 98 + [False] * 2, candidate="large")
    result = check(small, large, 0.06)
    assert result.requirement == "at most 0.060 less accurate than the large model"
    assert result.measured == "0.000 [-0.053, 0.053] n=100 of 100 rows paired"
    assert result.passed
    tight = check(small, large, 0.05)
    assert not tight.passed
    assert tight.advice == "so few rows cannot tell: more are needed"
    assert (tight.more_rows or 0) > 9  # as many would do if nothing of it were chance


def test_a_sample_of_the_large_model_is_paired_on_that_sample(measured: Measured) -> None:
    small = measured([True] * 100)
    sample = measured([True] * 40, candidate="large", keys=[f"row{i}" for i in range(60, 100)])
    result = check(small, sample, 0.09)
    assert (result.passed, result.measured) == (True, "0.000 [-0.088, 0.088] n=40 of 100 rows paired")


@pytest.mark.parametrize("name", MARGINS)
def test_rows_that_only_one_of_them_answered_show_nothing(measured: Measured, name: str) -> None:
    far = measured([True] * 40, candidate="large", keys=[f"other{i}" for i in range(40)])
    for large, said in ((far, "n=0 of 100 rows paired"), (None, "the large model was not measured")):
        result = check(measured([True] * 100), large, 1.0, name)
        assert result.passed is False
        assert result.measured == said
        assert result.advice == "measure the large model on the same rows, or on a sample of them"


def test_scores_are_compared_by_their_mean(measured: Measured) -> None:
    small = measured([True] * 200, scores=[0.8] * 100 + [0.6] * 100)
    large = measured([True] * 200, scores=[0.7] * 200, candidate="large")
    result = check(small, large, 0.02, MARGINS[1])
    # Rows differ by ±0.1: the half-width would be 0.017, but 200 rows show no better than 3.8415 / 203.8415 = 0.0188.
    assert result.measured == "0.000 [-0.019, 0.017] n=200 of 200 rows paired"
    assert result.passed
    assert not check(small, large, 0.018, MARGINS[1]).passed


def test_equal_scores_on_few_rows_are_no_certainty(measured: Measured) -> None:
    small, large = measured([True] * 10, scores=[0.5] * 10), measured([True] * 10, scores=[0.5] * 10, candidate="large")
    result = check(small, large, 0.1, MARGINS[1])
    assert not result.passed
    # -3.8415 / 13.8415 = -0.278; to shrink it to 0.1 by the root of n: 10 · 2.7753² = 77.03, so 68 more at one in two.
    assert (result.more_rows or 0) > 68
    assert 0.6 < (result.chance or 0) <= 0.76


@pytest.mark.parametrize("score", [float("nan"), 1.5, -0.1])
def test_a_score_out_of_range_fails_the_bar(measured: Measured, score: float) -> None:
    small = measured([True] * 10, scores=[score] + [1.0] * 9)
    result = check(small, measured([True] * 10, candidate="large"), 1.0, MARGINS[1])
    assert (result.passed, result.measured) == (False, "a score is not in [0, 1]")


def test_a_row_that_occurs_twice_counts_once(measured: Measured) -> None:
    twice = ["a", "a", *(f"row{i}" for i in range(98))]
    small, large = (measured([True] * 100, keys=twice, candidate=name) for name in ("small", "large"))
    assert check(small, large, 0.5).measured.endswith("n=99 of 100 rows paired")
