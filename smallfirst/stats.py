"""Numbers with their uncertainty. Pure functions over counts and arrays; checked against scipy and statsmodels.

No number travels alone: what leaves this module is an Estimate (value, low, high, n), or a p-value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats as scipy_stats

from smallfirst.records import Record


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
    z = float(scipy_stats.norm.ppf(0.5 + confidence / 2))
    share, z2 = successes / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half), n=n)


def upper_bound(errors: int, n: int, *, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound on an error rate (Clopper and Pearson 1934). n = 0 gives 1."""
    if n == 0 or errors >= n:
        return 1.0
    return float(scipy_stats.beta.ppf(confidence, errors + 1, n - errors))


def binomial_tail(errors: int, n: int, rate: float) -> float:
    """P(at most `errors` errors in n draws at error rate `rate`): the p-value of «the true rate is above rate»."""
    return float(scipy_stats.binom.cdf(errors, n, rate))


def rows_needed(rate: float, bar: float, *, confidence: float = 0.95, most: int = 100_000) -> int | None:
    """Fewest rows at which an observed error `rate` shows «at most `bar`» by the exact bound; None if never."""
    if rate >= bar:
        return None
    # Errors come whole, so more rows may show less; hence a scan, not a bisection.
    for start in range(1, most + 1, 1000):
        n = np.arange(start, min(start + 1000, most + 1))
        errors = np.ceil(rate * n - 1e-9)  # 0.07 * 100 must be 7, not the 8 that rounding up 7.000…1 gives
        shown = scipy_stats.binom.cdf(errors, n, bar) <= 1 - confidence
        if shown.any():
            return int(n[shown.argmax()])
    return None


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar p-value from the counts of rows that only one of two models gets right."""
    n = only_first + only_second
    return 1.0 if n == 0 else float(scipy_stats.binomtest(only_first, n, 0.5).pvalue)


def paired_difference(first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95) -> Estimate:
    """Accuracy of `first` minus accuracy of `second` on the same rows, in [-1, 1].

    Interval: Wald after adding half a pair of each of the four kinds (Agresti and Min 2005).
    Raises ValueError if the lengths differ.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"paired rows differ in number: {a.size} and {b.size}")
    n, only_a, only_b = a.size, int((a & ~b).sum()), int((b & ~a).sum())
    if n == 0:
        return Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    z = float(scipy_stats.norm.ppf(0.5 + confidence / 2))
    m, p, q = n + 2, (only_a + 0.5) / (n + 2), (only_b + 0.5) / (n + 2)
    half = z * math.sqrt(max(p + q - (p - q) ** 2, 0.0) / m)
    return Estimate(value=(only_a - only_b) / n, low=max(-1.0, p - q - half), high=min(1.0, p - q + half), n=n)


def bootstrap(
    metric: Callable[[np.ndarray], float], n: int, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """`metric(row_indices)` over all n rows with a percentile bootstrap interval (Efron 1979)."""
    everything = np.arange(n)
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    draw = np.random.default_rng(seed)
    values = [metric(draw.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value=metric(everything), low=float(low), high=float(high), n=n)


def macro_f1(gold: np.ndarray, answer: np.ndarray, n_classes: int) -> float:
    """Mean F1 over the classes that occur in `gold` or `answer` (integers; -1 as answer = none of them)."""
    hit = np.bincount(gold[gold == answer], minlength=n_classes)
    said = np.bincount(answer[answer >= 0], minlength=n_classes)
    there = np.bincount(gold, minlength=n_classes)
    total = said + there
    return float(np.mean(2 * hit[total > 0] / total[total > 0])) if total.any() else 0.0
