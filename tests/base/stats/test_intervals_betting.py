"""Bounds on means of bounded losses: hand values, the exact bound as a yardstick, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.stats.intervals import betting_p_value, upper_bound

LOSSES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def bits(ones: int, n: int) -> np.ndarray:
    return np.array([1.0] * ones + [0.0] * (n - ones))


def test_one_row_by_hand() -> None:
    # Against «mean >= 1/2» a loss of 0 multiplies by 1 + b, a loss of 1 by 1 - b. Bets b: 32 of mean 1/2 and weight
    # 3/4 together, and 0.999 of weight 1/4. Wealth 3/4 * 1.5 + 1/4 * 1.999 = 1.62475 (and 0.37525 after a loss).
    assert betting_p_value([0.0], 0.5) == pytest.approx(1 / 1.62475)
    assert betting_p_value([1.0], 0.5) == 1.0
    # A row at the mean itself changes nothing.
    assert betting_p_value([0.5, 0.0], 0.5) == pytest.approx(1 / 1.62475)


@pytest.mark.parametrize(("errors", "n"), [(0, 300), (3, 200), (40, 800), (100, 300)])
def test_for_binary_losses_betting_shows_a_little_less_than_the_exact_bound(errors: int, n: int) -> None:
    exact = upper_bound(errors, n)
    assert betting_p_value(bits(errors, n), exact) > 0.05 > betting_p_value(bits(errors, n), exact + 0.05)


@settings(max_examples=60, deadline=None)
@given(LOSSES, st.randoms(use_true_random=False), st.floats(0.05, 0.95))
def test_the_order_of_rows_and_their_unit_do_not_matter(losses: list[float], random: object, mean: float) -> None:
    p_value = betting_p_value(losses, mean)
    random.shuffle(losses)  # type: ignore[attr-defined]
    assert betting_p_value(losses, mean) == pytest.approx(p_value)
    moved = [2 * loss - 1 for loss in losses]
    assert betting_p_value(moved, 2 * mean - 1, low=-1, high=1) == pytest.approx(p_value, rel=1e-6)


def test_nothing_seen_shows_nothing() -> None:
    assert betting_p_value([], 0.5) == 1.0
    assert betting_p_value([0.0] * 500, 0.0) == 1.0  # no data refutes a mean of 0 or more


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values must lie in \[0, 1\]"):
        betting_p_value([0.5, 1.5], 0.5)
    with pytest.raises(ValueError, match=r"values must lie in \[-1, 1\]"):
        betting_p_value([-2.0], 0.0, low=-1, high=1)


@pytest.mark.parametrize(
    ("draw", "mean", "low"),
    [
        (lambda g, n: (g.random(n) < 0.04).astype(float), 0.04, 0.0),
        (lambda g, n: g.beta(0.5, 4.5, n), 0.1, 0.0),
        (lambda g, n: g.choice([-1.0, 0.0, 1.0], n, p=[0.05, 0.88, 0.07]), 0.02, -1.0),
    ],
)
def test_the_bounds_cover_the_mean_as_often_as_they_say(draw, mean: float, low: float) -> None:
    generator, sets, missed = np.random.default_rng(3), 600, 0
    for _ in range(sets):
        missed += betting_p_value(draw(generator, 120), mean, low=low) <= 0.05
    # A p-value of at most 0.05 at the true mean is a bound that misses it.
    assert missed / sets <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sets)
