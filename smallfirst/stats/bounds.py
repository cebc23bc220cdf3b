"""Exact bounds on the mean of bounded losses, valid for any distribution and number of rows.

Values in [low, high] are tested by betting. Values in {-1, 0, 1}, such as the loss of accuracy against another model on
paired rows, by an exact trinomial test: with d the share of values that are not 0 and m their number, m is binomial
(n, d) and, given m, the number of losses (+1) is binomial (m, (1 + mean / d) / 2). It takes the worst d of a confidence
set (Berger and Boos 1994), so it is exact for every d and n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special

from smallfirst.stats.intervals import clopper_pearson, edge

_BETS = np.concatenate([(np.arange(32) + 0.5) / 32, [0.999]])
"""Shares of the largest bet that cannot lose everything; the last one is for losses that never occurred."""
_WEIGHTS = np.concatenate([np.full(32, 0.75 / 32), [0.25]])
_SET_SHARE = 0.02
"""Share of the level for the confidence set of d; the test has the rest."""
_POINTS = 13
"""Values of d in the set at which the chance is taken; the greatest is then looked for between its neighbours."""


def betting_p_value(values: Sequence[float] | np.ndarray, mean: float, *, low: float = 0.0, high: float = 1.0) -> float:
    """Return the p-value of "the true mean is `mean` or more", for independent values in [low, high].

    Bets at fair odds against the claim; 1 / final wealth is the p-value (Waudby-Smith and Ramdas 2024). Independent of
    the order of rows. No values give 1. Raise ValueError if one leaves the range.
    """
    scaled = _scaled(values, low, high)
    at = (mean - low) / (high - low)
    if scaled.size == 0 or at <= 0:
        return 1.0
    if at >= 1:
        return 0.0 if at > 1 else 1.0
    return min(1.0, math.exp(-_log_wealth(*np.unique(scaled, return_counts=True), at)))


def _scaled(values: Sequence[float] | np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (np.asarray(values, dtype=np.float64) - low) / (high - low)
    if scaled.size and not (scaled.min() >= -1e-12 and scaled.max() <= 1 + 1e-12):
        raise ValueError(f"values must lie in [{low:g}, {high:g}]")
    return np.clip(scaled, 0.0, 1.0)


def _log_wealth(seen: np.ndarray, counts: np.ndarray, mean: float) -> float:
    """Return the log of the final wealth against "the mean is `mean` or more", 0 < mean < 1; values with counts.

    A bet of share b stakes b / (1 - mean) on "below the mean": a row of loss x multiplies the wealth by
    1 + b (mean - x) / (1 - mean), which is above 0 for every x in [0, 1] and grows with the mean.
    """
    logs = np.log1p(np.outer(_BETS / (1 - mean), mean - seen)) @ counts
    top = float(logs.max())
    return top + math.log(float(_WEIGHTS @ np.exp(logs - top)))


@lru_cache(maxsize=4096)
def trinomial_p_value(losses: int, gains: int, n: int, mean: float, *, outside: float = 0.001) -> float:
    """Return the p-value of "the true mean is `mean` or more" from the numbers of +1 and -1 among n values.

    The maximum over a confidence set for the share of values that are not 0, at level 1 - `outside`, plus `outside`;
    the statistic is losses minus gains, less n `mean`, over its standard error. For each number of values that are not
    0 it grows with the losses, so that a greater true mean only makes small values rarer. No values give 1. Raise
    ValueError for impossible counts, or a mean outside (0, 1).
    """
    if min(losses, gains) < 0 or losses + gains > n or not 0 < mean < 1:
        raise ValueError(f"impossible: {losses} losses and {gains} gains among {n} values, mean {mean:g}")
    if n == 0:
        return 1.0
    share = clopper_pearson(losses + gains, n, confidence=1 - outside)
    if share.high < mean:  # so large a mean needs more values that are not 0
        return outside
    shares = np.linspace(max(share.low, mean), share.high, _POINTS)
    chances = _chances(shares, losses, gains, n, mean)
    best = int(chances.argmax())
    between = np.linspace(shares[max(0, best - 1)], shares[min(_POINTS - 1, best + 1)], 7)
    return min(1.0, outside + max(float(chances[best]), float(_chances(between, losses, gains, n, mean).max())))


def trinomial_upper_bound(losses: int, gains: int, n: int, *, confidence: float = 0.95) -> float:
    """Return the least mean in [0, 1] that the test at level 1 - `confidence` rejects; 1 without values."""
    seen, level = max(0.0, (losses - gains) / max(1, n)), 1 - confidence
    return edge(seen, 1.0, lambda mean: not is_mean_below(mean, losses, gains, n, level=level), within=1e-6)


def is_mean_below(mean: float, losses: int, gains: int, n: int, *, level: float) -> bool:
    """Return True if the test at `level` rejects "the true mean is `mean` or more"; counts as for the p-value."""
    return trinomial_p_value(losses, gains, n, mean, outside=_SET_SHARE * level) <= level


def _chances(shares: np.ndarray, losses: int, gains: int, n: int, mean: float) -> np.ndarray:
    """Return by share of values that are not 0 the chance of at most the seen statistic if the mean is `mean`."""
    spread = 6.5 * np.sqrt(n * shares * (1 - shares)) + 6.5
    least, most = max(0, int((n * shares - spread).min())), min(n, int((n * shares + spread).max()))
    different = np.arange(least, most + 1)
    error = np.sqrt(n * (np.maximum(different / n, mean) - mean**2))
    seen = (losses - gains - n * mean) / np.sqrt(n * (max((losses + gains) / n, mean) - mean**2))
    enough = np.clip(np.floor((different + n * mean + seen * error) / 2 + 1e-9), -1, different)  # losses, at most
    ways = special.gammaln(n + 1) - special.gammaln(different + 1) - special.gammaln(n - different + 1)
    odds = np.log(shares) - np.log1p(-np.minimum(shares, 1 - 1e-12))
    weight = np.exp(ways + n * np.log1p(-np.minimum(shares, 1 - 1e-12))[:, None] + odds[:, None] * different)
    at, number = np.nonzero((weight > 1e-7) & (enough >= 0))
    below = special.bdtr(enough[number], different[number], (1 + mean / shares[at]) / 2)
    summed = np.bincount(at, weight[at, number] * below, minlength=len(shares))
    # What is too unlikely to be summed counts as if it always gave so small a statistic.
    left_out = 1 - np.where(weight > 1e-7, weight, 0.0).sum(axis=1)
    return np.asarray(summed + np.maximum(left_out, 0.0), dtype=np.float64)
