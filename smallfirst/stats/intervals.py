"""Numbers with their uncertainty. Pure functions over counts and arrays; checked against scipy and statsmodels.

No number travels alone: what leaves this module is an Estimate (value, low, high, n), or a p-value. The intervals were
chosen for covering the truth near 0 and 1 and with few rows, where the textbook ones shrink to nothing. What they cost
is width; `benchmarks/results/intervals.md` shows by simulation how often each covers, and where it falls short.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy import special

from smallfirst.records import Record

_ALL_FLIPS = 13
"""Rows that differ, up to which a permutation test goes through every flip."""


class Estimate(Record):
    """A measured value with its interval. Prints as `0.912 [0.886, 0.932]`."""

    value: float
    """Point estimate."""
    low: float
    """Lower end of the interval (two-sided, 95 % unless said)."""
    high: float
    """Upper end of the interval."""
    n: int
    """How many examples it rests on."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval (Wilson 1927). n = 0 gives [0, 1] around 0."""
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    low, high = _wilson_ends(successes / n, n, confidence)
    return Estimate(value=successes / n, low=low, high=high, n=n)


def clopper_pearson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Share of successes with the exact interval (Clopper and Pearson 1934): never covers too seldom, but is wide.

    n = 0 gives [0, 1] around 0.
    """
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Estimate(value=successes / n, low=low, high=high, n=n)


def upper_bound(errors: int, n: int, *, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound on an error rate (Clopper and Pearson 1934). n = 0 gives 1."""
    if n == 0 or errors >= n:
        return 1.0
    return float(special.betaincinv(errors + 1, n - errors, confidence))


def binomial_tail(errors: int, n: int, rate: float) -> float:
    """P(at most `errors` errors in n draws at error rate `rate`): the p-value of «the true rate is above rate»."""
    return float(special.bdtr(errors, n, rate))


def rows_needed(rate: float, bar: float, *, confidence: float = 0.95, most: int = 100_000) -> int | None:
    """Fewest rows at which an observed error `rate` shows «at most `bar`» by the exact bound; None if never."""
    if rate >= bar:
        return None
    # Errors come whole, so more rows may show less; hence a scan, not a bisection.
    for start in range(1, most + 1, 1000):
        n = np.arange(start, min(start + 1000, most + 1))
        errors = np.ceil(rate * n - 1e-9)  # 0.07 * 100 must be 7, not the 8 that rounding up 7.000…1 gives
        shown = special.bdtr(errors, n, bar) <= 1 - confidence
        if shown.any():
            return int(n[shown.argmax()])
    return None


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar p-value from the counts of rows that only one of two models gets right."""
    n = only_first + only_second
    return 1.0 if n == 0 else min(1.0, 2 * float(special.bdtr(min(only_first, only_second), n, 0.5)))


def paired_difference(first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95) -> Estimate:
    """Accuracy of `first` minus accuracy of `second` on the same rows, in [-1, 1].

    Interval: Wald after adding half a pair of each of the four kinds (Agresti and Min 2005).
    Raises ValueError if the lengths differ.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    return _paired(a.astype(np.float64), b.astype(np.float64), confidence)


def paired_mean_difference(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean score of `first` minus mean score of `second` on the same rows, in [-1, 1], for graded scores in [0, 1].

    Interval: Agresti and Min's, as for right and wrong (of which it is the general form): two more pairs are added,
    half of one at +1, half at -1, one at 0. No bootstrap: where most rows score alike, as token F1 does, there is too
    little to resample. At 30 rows of which 3 % differ a percentile bootstrap covers the truth 4 times in 10, and a
    bootstrap-t has resamples without any spread to divide by. The price is an interval too wide by up to 2 / n where
    all differences are small. Raises ValueError if the lengths differ or a difference leaves [-1, 1].
    """
    return _paired(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64), confidence)


def bootstrap(
    metric: Callable[[np.ndarray], float], n: int, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """`metric(row_indices)` over all n rows with a percentile bootstrap interval (Efron 1979).

    For figures without a known range. It has no width where every row is alike; for averages of shares use
    `bootstrap_share`. n = 0 gives [0, 1] around 0.
    """
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    value, values = _resample(metric, n, resamples=resamples, seed=seed)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value=value, low=float(low), high=float(high), n=n)


def bootstrap_share(
    metric: Callable[[np.ndarray], float], n: int, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """`metric(row_indices)` in [0, 1] over all n rows, for averages of shares such as macro F1.

    The interval is that of `bootstrap_interval`. n = 0 gives [0, 1] around 0.
    """
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    value, values = _resample(metric, n, resamples=resamples, seed=seed)
    return bootstrap_interval(value, values, n=n, confidence=confidence)


def bootstrap_interval(value: float, values: np.ndarray, *, n: int, confidence: float = 0.95) -> Estimate:
    """A figure in [0, 1] over n rows, at least one, from its `values` on bootstrap resamples of them.

    Interval: bias-corrected percentiles (Efron 1981), widened where need be to Wilson's interval of a share of the same
    value. Resampling cannot show an error that was not seen: 30 rows without one give it no width at all.
    """
    low, high = _bias_corrected(value, values, confidence)
    least, most = _wilson_ends(value, n, confidence)
    return Estimate(value=value, low=min(low, least), high=max(high, most), n=n)


def paired_bootstrap(
    first: Callable[[np.ndarray], float],
    second: Callable[[np.ndarray], float],
    *,
    n: int,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`first(row_indices)` minus `second(row_indices)` over the same n rows, for metrics in [0, 1].

    Interval: bias-corrected percentile bootstrap of the difference, both metrics seeing the same resampled rows; never
    narrower than that of n rows without any difference (`paired_mean_difference`). n = 0 gives [-1, 1] around 0.
    """
    if n == 0:
        return Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    value, values = _resample(lambda rows: first(rows) - second(rows), n, resamples=resamples, seed=seed)
    low, high = _bias_corrected(value, values, confidence)
    least = _z(confidence) / (n + 2)
    return Estimate(value=value, low=max(-1.0, min(low, value - least)), high=min(1.0, max(high, value + least)), n=n)


def macro_f1(gold: np.ndarray, answer: np.ndarray, n_classes: int) -> float:
    """Mean F1 over the classes that occur in `gold` or `answer` (integers; -1 as answer = none of them)."""
    hit = np.bincount(gold[gold == answer], minlength=n_classes)
    said = np.bincount(answer[answer >= 0], minlength=n_classes)
    there = np.bincount(gold, minlength=n_classes)
    total = said + there
    return float(np.mean(2 * hit[total > 0] / total[total > 0])) if total.any() else 0.0


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable], *, confidence: float = 0.95) -> Estimate:
    """Agreement of two judges beyond chance on the same rows, in [-1, 1] (Cohen 1960).

    Interval: Wilson's for the share of agreement, the share by chance taken as known; the usual large-sample error is 0
    for two judges who never differed. If both gave one and the same answer throughout, or there is no row, nothing is
    shown: 0 in [-1, 1]. Raises ValueError if the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"paired rows differ in number: {len(first)} and {len(second)}")
    n, answers = len(first), {*first, *second}
    if len(answers) < 2:
        return Estimate(value=0.0, low=-1.0, high=1.0, n=n)
    agreed = sum(a == b for a, b in zip(first, second, strict=True))
    once, again = Counter(first), Counter(second)
    chance = sum(once[answer] * again[answer] for answer in answers) / n**2

    def beyond(share: float) -> float:
        return max(-1.0, (share - chance) / (1 - chance))

    low, high = _wilson_ends(agreed / n, n, confidence)
    return Estimate(value=beyond(agreed / n), low=beyond(low), high=beyond(high), n=n)


def permutation_p(first: Sequence[float], second: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of «both score alike on average», from flipping which of the two got which score of a row.

    Exact up to 13 rows that differ (all 2^13 flips), where it is McNemar's exact test for scores of 0 and 1; beyond,
    `draws` random flips with the observed one counted among them (Phipson and Smyth 2010), so it is never 0. Raises
    ValueError if the lengths differ.
    """
    d = _differences(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    d = d[d != 0]
    seen = abs(float(d.sum())) - 1e-9  # flips that sum up alike but for rounding are alike
    if d.size <= _ALL_FLIPS:
        flips = 1 - 2 * ((np.arange(2**d.size)[:, None] >> np.arange(d.size)) & 1)
        return float(np.mean(np.abs(flips @ d) >= seen))
    draw = np.random.default_rng(seed)
    as_far = 0
    for start in range(0, draws, 500):
        flips = 1 - 2 * draw.integers(0, 2, (min(500, draws - start), d.size), dtype=np.int8)
        as_far += int((np.abs(flips @ d) >= seen).sum())
    return (1 + as_far) / (1 + draws)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values in the same order, corrected for their number by Holm's step-down (1979), however they depend."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return tuple(adjusted.tolist())


def _z(confidence: float) -> float:
    return float(special.ndtri(0.5 + confidence / 2))


def _wilson_ends(share: float, n: int, confidence: float) -> tuple[float, float]:
    z = _z(confidence)
    z2 = z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and at 1 an end is the share itself, and rounding must not put it on the wrong side.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if first.shape != second.shape:
        raise ValueError(f"paired rows differ in number: {first.size} and {second.size}")
    difference: np.ndarray = first - second
    return difference


def _paired(first: np.ndarray, second: np.ndarray, confidence: float) -> Estimate:
    d = _differences(first, second)
    if d.size == 0:
        return Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    if not (np.abs(d) <= 1).all():
        raise ValueError("paired scores must differ by at most 1: scores lie in [0, 1]")
    m, value = d.size + 2, float(d.mean())
    centre = float(d.sum()) / m
    half = _z(confidence) * math.sqrt(max((float(d @ d) + 1) / m - centre**2, 0.0) / m)
    low, high = min(value, centre - half), max(value, centre + half)
    return Estimate(value=value, low=max(-1.0, low), high=min(1.0, high), n=d.size)


def _resample(metric: Callable[[np.ndarray], float], n: int, *, resamples: int, seed: int) -> tuple[float, np.ndarray]:
    """The metric on all n rows, and on each resample."""
    draw = np.random.default_rng(seed)
    return float(metric(np.arange(n))), np.array([metric(draw.integers(0, n, n)) for _ in range(resamples)])


def _bias_corrected(value: float, values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Low and high, moved so that the value sits in the middle of what the resamples gave."""
    below = float((values < value).mean() + (values == value).mean() / 2)
    least = 0.5 / len(values)
    shift = 2 * float(special.ndtri(min(max(below, least), 1 - least)))
    z = _z(confidence)
    low, high = np.quantile(values, special.ndtr([shift - z, shift + z]))
    return float(low), float(high)
