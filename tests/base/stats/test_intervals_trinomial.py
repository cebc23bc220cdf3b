"""The exact trinomial test: against sums over all outcomes, its size, its bound, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from smallfirst.base.stats.intervals import betting_p_value, is_mean_below, trinomial_p_value, trinomial_upper_bound


def outcomes(n: int) -> tuple[np.ndarray, np.ndarray]:
    losses, gains = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    return losses[losses + gains <= n], gains[losses + gains <= n]


def chance_of(losses: np.ndarray, gains: np.ndarray, n: int, different: float, mean: float) -> np.ndarray:
    """The trinomial probability of each outcome, by its definition."""
    rest = n - losses - gains
    ways = special.gammaln(n + 1) - special.gammaln(losses + 1) - special.gammaln(gains + 1) - special.gammaln(rest + 1)
    up, down = (different + mean) / 2, (different - mean) / 2
    logs = special.xlogy(losses, up) + special.xlogy(gains, down) + special.xlogy(rest, 1 - different)
    return np.asarray(np.exp(ways + logs))


@pytest.mark.parametrize(("losses", "gains", "n", "mean"), [(3, 2, 60, 0.1), (0, 0, 60, 0.05), (10, 14, 60, 0.1)])
def test_the_p_value_is_the_greatest_chance_of_so_little_loss(losses: int, gains: int, n: int, mean: float) -> None:
    up, down = outcomes(n)
    error = np.sqrt(n * (np.maximum((up + down) / n, mean) - mean**2))
    statistic = (up - down - n * mean) / error
    seen = statistic[(up == losses) & (down == gains)][0]
    outside = 0.001
    m = losses + gains
    low = special.betaincinv(m, n - m + 1, outside / 2) if m else 0.0
    high = special.betaincinv(m + 1, n - m, 1 - outside / 2)
    shares = np.linspace(max(mean, low), high, 400)
    greatest = max(chance_of(up, down, n, share, mean)[statistic <= seen + 1e-9].sum() for share in shares)
    assert trinomial_p_value(losses, gains, n, mean) == pytest.approx(greatest + outside, abs=2e-4)


@pytest.mark.parametrize(("n", "mean", "level"), [(40, 0.1, 0.05), (40, 0.1, 0.0125)])
def test_a_true_mean_at_or_above_the_limit_is_rejected_as_seldom_as_stated(n: int, mean: float, level: float) -> None:
    up, down = outcomes(n)
    pairs = zip(up.tolist(), down.tolist(), strict=True)
    rejected = np.array([is_mean_below(mean, one, other, n, level=level) for one, other in pairs])
    sizes = [
        chance_of(up, down, n, different, true)[rejected].sum()
        for true in (mean, 1.5 * mean)
        for different in np.linspace(true, 1, 40)
    ]
    assert max(sizes) <= level
    assert max(sizes) > 0.75 * level


def test_the_bound_is_where_the_test_begins_to_reject() -> None:
    bound = trinomial_upper_bound(12, 8, 400)
    assert is_mean_below(bound, 12, 8, 400, level=0.05)
    assert not is_mean_below(bound - 1e-4, 12, 8, 400, level=0.05)
    assert trinomial_upper_bound(0, 0, 0) == 1.0
    values = np.repeat([1.0, -1.0, 0.0], [12, 8, 380])
    assert betting_p_value(values, bound, low=-1, high=1) > 0.05  # betting shows less


def test_impossible_counts_are_refused() -> None:
    for losses, gains, n, mean in ((-1, 0, 5, 0.1), (3, 3, 5, 0.1), (1, 1, 5, 0.0), (1, 1, 5, 1.0)):
        with pytest.raises(ValueError, match="impossible"):
            trinomial_p_value(losses, gains, n, mean)
