"""Comparisons with the large model, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import ConfidenceLevel
from smallfirst.gate.paired import (
    check_not_worse,
    check_score_not_worse,
    paired_score_difference,
    paired_score_interval,
)
from smallfirst.stats.intervals import paired_mean_difference

Measured = Callable[..., Evaluation]
ONE = ConfidenceLevel(1)


def score_statistic(only_first: int, only_second: int, n: int, difference: float) -> float:
    """Tango's statistic, with the nuisance share found by maximising the likelihood instead of by his formula."""

    def against(only_second_share: float) -> float:
        shares = (only_second_share + difference, only_second_share, 1 - 2 * only_second_share - difference)
        counts = (only_first, only_second, n - only_first - only_second)
        return -sum(c * math.log(max(s, 1e-300)) for c, s in zip(counts, shares, strict=True) if c)

    ends = (max(0.0, -difference), (1 - difference) / 2)
    share = minimize_scalar(against, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    return float(
        (only_first - only_second - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference)))
    )


@pytest.mark.parametrize(("only_first", "only_second", "n"), [(12, 2, 50), (3, 5, 40), (1, 9, 30), (40, 40, 200)])
def test_both_ends_are_where_the_score_test_turns(only_first: int, only_second: int, n: int) -> None:
    found = paired_score_interval(only_first, only_second, n, confidence=0.9)
    z = norm.ppf(0.95)
    assert found.value == (only_first - only_second) / n
    assert score_statistic(only_first, only_second, n, found.low) == pytest.approx(z, abs=1e-4)
    assert score_statistic(only_first, only_second, n, found.high) == pytest.approx(-z, abs=1e-4)


def test_rows_without_disagreement_leave_room_for_doubt() -> None:
    # By hand: n d / √(n d (1 - d)) = z gives d = z² / (n + z²) = 3.8415 / 43.8415.
    found = paired_score_interval(0, 0, 40)
    assert (found.low, found.high) == pytest.approx((-0.08762, 0.08762), abs=1e-5)


def test_extremes_stay_inside_minus_one_and_one() -> None:
    assert paired_score_interval(0, 10, 10).low == -1.0
    assert paired_score_interval(10, 0, 10).high == 1.0
    nothing = paired_score_interval(0, 0, 0)
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (0.0, -1.0, 1.0, 0)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))))
def test_an_answer_that_becomes_right_never_lowers_the_lower_end(counts: tuple[int, int, int]) -> None:
    only_first, only_second, n = counts
    only_second = min(only_second, n - only_first)
    now = paired_score_interval(only_first, only_second, n).low
    if only_second:
        assert paired_score_interval(only_first, only_second - 1, n).low >= now
    if only_first + only_second < n:
        assert paired_score_interval(only_first + 1, only_second, n).low >= now


def test_the_graded_interval_is_the_plain_one_where_no_row_sticks_out() -> None:
    first, second = [0.5, 0.7, 0.4, 0.9, 0.6, 0.2], [0.4, 0.8, 0.4, 0.7, 0.5, 0.4]
    assert paired_score_difference(first, second) == paired_mean_difference(first, second)


def test_one_much_better_row_does_not_lower_what_is_shown() -> None:
    same, z = [0.0] * 30, 1.959964
    # At most where the difference is S/m + √(Q + 1 - S²/m)/z: for one row d with m = 32,
    # d (1 - 1/m) z = √(1 + d² (1 - 1/m)), so d = 1/√((31/32)² z² - 31/32), about 0.61.
    best = 1 / math.sqrt((31 / 32) ** 2 * z**2 - 31 / 32)
    plain = [paired_mean_difference([d, *same], [0.0, *same]).low for d in (best, 1.0)]
    lows = [paired_score_difference([d, *same], [0.0, *same]).low for d in (0.5, best, 1.0)]
    assert plain[1] < plain[0]
    assert lows[0] < lows[1]
    assert lows[1] == pytest.approx(plain[0], abs=1e-6)
    assert lows[2] == pytest.approx(lows[1], abs=1e-4)


def test_the_lower_end_is_the_highest_that_lower_scores_would_have_shown() -> None:
    d = np.array([1.0, 0.9, 0.1, 0.0, 0.0, -0.1, -0.2, 0.0, 0.05, 0.0])
    z, m = norm.ppf(0.9995), 12
    best = minimize(
        lambda x: -(x.sum() - z * np.sqrt(x @ x + 1 - x.sum() ** 2 / m)) / m,
        np.zeros(10),
        bounds=[(-1, top) for top in d],
        options={"ftol": 1e-14, "gtol": 1e-10},
    )
    found = paired_score_difference(list(np.maximum(d, 0)), list(np.maximum(-d, 0)), confidence=0.999)
    assert found.low == pytest.approx(-best.fun, abs=1e-6)


def test_the_same_rows_are_compared(measured: Measured) -> None:
    small = measured([False] * 2 + [True] * 98)
    large = measured([True] * 98 + [False] * 2, candidate="large")
    line = check_not_worse(0.06, small, large, ONE)
    assert line.bar == "at most 0.060 less accurate than the large model"
    assert line.measured == "0.000 [-0.053, 0.053] n=100 of 100 rows paired"
    assert line.passed
    tight = check_not_worse(0.05, small, large, ONE)
    assert not tight.passed
    assert tight.advice == "100 examples cannot show this; label about 9 more"


def test_a_sample_of_the_large_model_is_paired_on_that_sample(measured: Measured) -> None:
    small = measured([True] * 100)
    sample = measured([True] * 40, candidate="large", keys=[f"row{i}" for i in range(60, 100)])
    line = check_not_worse(0.09, small, sample, ONE)
    assert (line.passed, line.measured) == (True, "0.000 [-0.088, 0.088] n=40 of 100 rows paired")


@pytest.mark.parametrize("bar", [check_not_worse, check_score_not_worse])
def test_rows_that_only_one_of_them_answered_show_nothing(measured: Measured, bar: Callable[..., object]) -> None:
    far = measured([True] * 40, candidate="large", keys=[f"other{i}" for i in range(40)])
    for large, said in ((far, "n=0 of 100 rows paired"), (None, "the large model was not measured")):
        line = bar(1.0, measured([True] * 100), large, ONE)
        assert line.passed is False  # type: ignore[attr-defined]
        assert line.measured == said  # type: ignore[attr-defined]
        assert line.advice == "measure the large model on the same rows, or on a sample of them"  # type: ignore[attr-defined]


@pytest.mark.parametrize("bar", [check_not_worse, check_score_not_worse])
def test_the_large_model_is_not_worse_than_itself_if_it_has_rows(
    measured: Measured, bar: Callable[..., object]
) -> None:
    large, empty = measured([True, False], candidate="large"), measured([], candidate="large")
    line = bar(0.0, large, large, ONE)
    assert (line.passed, line.measured) == (True, "is the large model itself n=2")  # type: ignore[attr-defined]
    assert not bar(0.0, empty, empty, ONE).passed  # type: ignore[attr-defined]


def test_scores_are_compared_by_their_mean(measured: Measured) -> None:
    small = measured([True] * 200, scores=[0.8] * 100 + [0.6] * 100)
    large = measured([True] * 200, scores=[0.7] * 200, candidate="large")
    line = check_score_not_worse(0.02, small, large, ONE)
    # Rows differ by ±0.1: the half-width would be 0.017, but 200 rows show no better than 3.8415 / 203.8415 = 0.0188.
    assert line.measured == "0.000 [-0.019, 0.017] n=200 of 200 rows paired"
    assert line.passed
    assert not check_score_not_worse(0.018, small, large, ONE).passed


def test_equal_scores_on_few_rows_are_no_certainty(measured: Measured) -> None:
    small, large = measured([True] * 10, scores=[0.5] * 10), measured([True] * 10, scores=[0.5] * 10, candidate="large")
    line = check_score_not_worse(0.1, small, large, ONE)
    assert not line.passed
    # -3.8415 / 13.8415 = -0.278; to shrink it to 0.1 by the root of n: 10 · 2.7753² = 77.03, so 68 more.
    assert line.advice == "10 examples cannot show this; label about 68 more"


@pytest.mark.parametrize("score", [float("nan"), 1.5, -0.1])
def test_a_score_out_of_range_fails_the_bar(measured: Measured, score: float) -> None:
    small = measured([True] * 10, scores=[score] + [1.0] * 9)
    line = check_score_not_worse(1.0, small, measured([True] * 10, candidate="large"), ONE)
    assert (line.passed, line.measured) == (False, "a score is not in [0, 1]")


def test_a_row_told_twice_counts_once_and_at_its_worst(measured: Measured) -> None:
    twice = ["a", "a", *(f"row{i}" for i in range(98))]
    small = measured([True, False] + [True] * 98, keys=twice)
    large = measured([False, True] + [True] * 98, keys=twice, candidate="large")
    line = check_not_worse(0.5, small, large, ONE)
    assert line.measured.startswith("-0.010 ")  # one of 99 rows
    assert line.measured.endswith("n=99 of 100 rows paired")
