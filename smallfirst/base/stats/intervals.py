"""Estimates with intervals, from counts and arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from scipy import special

from smallfirst.base.records import Record


class Estimate(Record):
    """A measured value with its interval. Prints as `0.912 [0.886, 0.932]`."""

    value: float
    low: float
    """Lower end of the interval (two-sided, 95 % unless stated otherwise)."""
    high: float
    """Upper end of the interval."""
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def edge(inner: float, outer: float, inside: Callable[[float], bool], *, within: float = 0.0) -> float:
    """Bisect for where `inside` ends between a value inside and one outside; return one outside, so near to it."""
    for _ in range(60):
        if abs(outer - inner) <= within:
            break
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if inside(middle) else (inner, middle)
    return outer


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Return the share of successes with Wilson's score interval (Wilson 1927). n = 0 gives [0, 1] around 0."""
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    low, high = _wilson_ends(successes / n, n, confidence)
    return Estimate(value=successes / n, low=low, high=high, n=n)


def clopper_pearson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Return the share of successes with the exact interval (Clopper and Pearson 1934). n = 0 gives [0, 1] around 0."""
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    return Estimate(value=successes / n, low=low, high=upper_bound(successes, n, confidence=1 - tail), n=n)


def upper_bound(errors: int, n: int, *, confidence: float = 0.95) -> float:
    """Return the exact one-sided upper bound on an error rate (Clopper and Pearson 1934). n = 0 gives 1."""
    if n == 0 or errors >= n:
        return 1.0
    return float(special.betaincinv(errors + 1, n - errors, confidence))


def mid_p_value(only_second: int, only_first: int) -> float:
    """Return the one-sided mid-p of McNemar's test that the second is better, in (0, 1] (Fagerland et al. 2013)."""
    n = only_second + only_first
    below = special.bdtr(only_first - 1, n, 0.5) if only_first else 0.0
    return float(special.bdtr(only_first, n, 0.5) + below) / 2 if n else 1.0


def paired_difference(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Return the mean score of `first` minus that of `second` on the same rows, in [-1, 1], for scores in [0, 1].

    Of right and wrong it is the accuracy. Interval: Agresti and Min (2005), and its general form; a bootstrap covers
    too little where most rows score alike. Raise ValueError if the lengths differ or a difference leaves [-1, 1].
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired rows differ in number: {a.size} and {b.size}")
    d = a - b
    if d.size == 0:
        return Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    if not (np.abs(d) <= 1).all():
        raise ValueError("paired scores must differ by at most 1: scores lie in [0, 1]")
    m, value = d.size + 2, float(d.mean())
    centre = float(d.sum()) / m
    half = _z(confidence) * math.sqrt(max((float(d @ d) + 1) / m - centre**2, 0.0) / m)
    low, high = min(value, centre - half), max(value, centre + half)
    return Estimate(value=value, low=max(-1.0, low), high=min(1.0, high), n=d.size)


def bootstrap_share(metric: Callable[[np.ndarray], float], n: int, *, resamples: int = 1000) -> Estimate:
    """Return a `metric(row_indices)` in [0, 1] with `bootstrap_interval`. n = 0 gives [0, 1] around 0."""
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    draw = np.random.default_rng(0)
    values = np.array([metric(draw.integers(0, n, n)) for _ in range(resamples)])
    return bootstrap_interval(metric(np.arange(n)), values, n=n)


def bootstrap_mean(scores: Sequence[float]) -> Estimate:
    """Return the mean of scores in [0, 1] as `bootstrap_share` does."""
    values = np.array(scores, dtype=float)
    return bootstrap_share(lambda at: float(values[at].mean()), len(values))


def bootstrap_interval(value: float, values: np.ndarray, *, n: int, confidence: float = 0.95) -> Estimate:
    """Return a figure in [0, 1] over n > 0 rows with an interval from its `values` on bootstrap resamples of them.

    Interval: bias-corrected percentiles (Efron 1981), widened to Wilson's interval of a share of equal value, because
    resampling cannot show an error that was not seen.
    """
    below, rarest, z = float((values < value).mean() + (values == value).mean() / 2), 0.5 / len(values), _z(confidence)
    shift = 2 * float(special.ndtri(min(max(below, rarest), 1 - rarest)))
    low, high = map(float, np.quantile(values, special.ndtr([shift - z, shift + z])))
    least, most = _wilson_ends(value, n, confidence)
    return Estimate(value=value, low=min(low, least), high=max(high, most), n=n)


def quantile_interval(values: Sequence[float] | np.ndarray, q: float, *, confidence: float = 0.95) -> Estimate:
    """Return the q-quantile with its exact interval between order statistics, for any distribution (Thompson 1936).

    An end that so few values cannot show is infinite: the high end of a p95 takes 72 of them. No value gives 0.
    """
    ordered, n, tail = np.sort(np.asarray(values, dtype=np.float64)), len(values), (1 - confidence) / 2
    at_most = special.bdtr(np.arange(n), n, q)  # P(at most k of n values lie below the quantile)
    ends = np.concatenate([[-math.inf], ordered, [math.inf]])
    low, high = np.searchsorted(at_most, tail, side="right"), np.searchsorted(at_most, 1 - tail) + 1
    value = float(np.quantile(ordered, q)) if n else 0.0
    return Estimate(value=value, low=float(ends[low]), high=float(ends[high]), n=n)


def mean_interval(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Return the mean of values of any scale and skewness with an interval; infinite ends without two finite values.

    Interval: bootstrap-t (Efron 1982), which follows the skewness, widened to Student's. Equal values give no width.
    """
    x, n, tail = np.sort(np.asarray(values, dtype=np.float64)), len(values), (1 - confidence) / 2
    if n < 2 or not np.isfinite(x).all():
        return Estimate(value=float(x.sum()), low=-math.inf, high=math.inf, n=n)
    if x[0] == x[-1]:
        return Estimate(value=float(x[0]), low=float(x[0]), high=float(x[0]), n=n)
    mean, scale = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(n)
    draw, found = np.random.default_rng(0), list[np.ndarray]()
    part = max(1, 2_000_000 // n)
    for first in range(0, resamples := max(1000, math.ceil(20 / tail)), part):
        taken = x[draw.integers(0, n, (min(part, resamples - first), n))]
        spread = np.maximum(taken.std(axis=1, ddof=1) / math.sqrt(n), 1e-9 * scale)
        found.append((taken.mean(axis=1) - mean) / spread)
    least, most = np.quantile(np.concatenate(found), [tail, 1 - tail])
    student = float(special.stdtrit(n - 1, 1 - tail))
    low, high = mean - max(float(most), student) * scale, mean - min(float(least), -student) * scale
    return Estimate(value=mean, low=low, high=high, n=n)


def ratio_interval(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, *, confidence: float = 0.95
) -> Estimate:
    """Return sum(above) / sum(below) over units that differ in size, such as days, with a Student interval.

    Interval: the linearized variance between units (Cochran 1977, 6.3). With y w above w, for weights w of 1 over the
    chance of being drawn, it is Hájek's mean. Fewer than two units, or nothing below, give infinite ends. The
    estimate's n is the sum of `below`.
    """
    y, x = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    units, whole = int(np.count_nonzero(x)), float(x.sum())
    value, half = float(y.sum()) / whole if whole else 0.0, math.inf
    if units > 1:
        spread = math.sqrt(units / (units - 1) * float(((y - value * x) ** 2).sum())) / whole
        half = spread * float(special.stdtrit(units - 1, 0.5 + confidence / 2))
    return Estimate(value=value, low=value - half, high=value + half, n=int(whole))


def _z(confidence: float) -> float:
    return float(special.ndtri(0.5 + confidence / 2))


def _wilson_ends(share: float, n: int, confidence: float) -> tuple[float, float]:
    z = _z(confidence)
    z2 = z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and at 1 an end is the share itself, and rounding must not put it on the wrong side.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def paired_score_interval(only_first: int, only_second: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Return the accuracy difference from the rows that only one gets right (Tango 1998); [-1, 1] for n = 0."""
    if n == 0:
        return Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    z = _z(confidence)
    low, high = score_lower_bound(only_first, only_second, n, z), -score_lower_bound(only_second, only_first, n, z)
    return Estimate(value=(only_first - only_second) / n, low=low, high=high, n=n)


def score_lower_bound(only_first: float, only_second: float, n: int, z: float) -> float:
    """Return the smallest difference that the score test at normal quantile `z` does not reject, by bisection."""
    a, b = only_first, only_second

    def accepted(difference: float) -> bool:
        # The likeliest share of "only second" at this difference: the larger root of a quadratic.
        linear, constant = (2 * n - a + b) * difference - a - b, -b * difference * (1 - difference)
        share = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        spread = math.sqrt(max(0.0, n * (2 * share + difference * (1 - difference))))
        return a - b - n * difference < z * spread

    return edge((a - b) / n, -1.0, accepted)


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
