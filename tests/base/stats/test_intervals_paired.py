"""Paired intervals against their definition, by hand, and as laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm

from smallfirst.base.stats.intervals import paired_difference, paired_score_difference, paired_score_interval


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
    assert paired_score_difference(first, second) == paired_difference(first, second)


def test_one_much_better_row_does_not_lower_what_is_shown() -> None:
    same, z = [0.0] * 30, 1.959964
    # At most where the difference is S/m + √(Q + 1 - S²/m)/z: for one row d with m = 32,
    # d (1 - 1/m) z = √(1 + d² (1 - 1/m)), so d = 1/√((31/32)² z² - 31/32), about 0.61.
    best = 1 / math.sqrt((31 / 32) ** 2 * z**2 - 31 / 32)
    plain = [paired_difference([d, *same], [0.0, *same]).low for d in (best, 1.0)]
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
