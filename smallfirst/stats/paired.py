"""Intervals for the difference of two models on the same rows that never fall when an answer gets better.

Tango's score interval (1998) for right and wrong, Agresti and Min's (2005), made monotone, for graded scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from smallfirst.stats.intervals import Estimate, paired_mean_difference

BISECTIONS = 60
"""Halvings of an interval of length 2: down to the last digit of a float."""
MAX_CLIPS = 1000
"""Rounds until the clipping point stands still; a dozen are usual."""


def paired_score_interval(only_first: int, only_second: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Return the accuracy difference from the rows that only one gets right (Tango 1998); [-1, 1] for n = 0."""
    if n == 0:
        return Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    z = float(special.ndtri(0.5 + confidence / 2))
    low, high = score_lower_bound(only_first, only_second, n, z), -score_lower_bound(only_second, only_first, n, z)
    return Estimate(value=(only_first - only_second) / n, low=low, high=high, n=n)


def score_lower_bound(only_first: float, only_second: float, n: int, z: float) -> float:
    """Return the smallest difference that the score test at normal quantile `z` does not reject, by bisection."""
    a, b = only_first, only_second
    rejected, accepted = -1.0, (a - b) / n
    for _ in range(BISECTIONS):
        middle = (rejected + accepted) / 2
        # The likeliest share of "only second" if the difference were `middle`: the larger root of a quadratic.
        linear, constant = (2 * n - a + b) * middle - a - b, -b * middle * (1 - middle)
        share = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        spread = math.sqrt(max(0.0, n * (2 * share + middle * (1 - middle))))
        rejected, accepted = (middle, accepted) if a - b - n * middle >= z * spread else (rejected, middle)
    return rejected


def paired_score_difference(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Return the mean score of the first minus that of the second on the same rows, for scores in [0, 1].

    Like `paired_mean_difference`, with errors as there, but the lower end never falls when the first scores higher:
    differences are clipped where one row adds more to the spread than to the mean.
    """
    whole = paired_mean_difference(first, second, confidence=confidence)
    if whole.n == 0:
        return whole
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    z, m = float(special.ndtri(0.5 + confidence / 2)), whole.n + 2
    # With the two pairs that Agresti and Min add, the lower end is (S - z √(Q + 1 - S²/m)) / m for the sum S and the
    # sum of squares Q: concave in every difference, with its maximum where that is S/m + √(Q + 1 - S²/m) / z.
    clipped = differences
    for _ in range(MAX_CLIPS):
        total = float(clipped.sum())
        highest = total / m + math.sqrt(max(0.0, float(clipped @ clipped) + 1 - total**2 / m)) / z
        before, clipped = clipped, np.minimum(differences, highest)
        if np.allclose(before, clipped, rtol=0, atol=1e-12):
            break
    low = paired_mean_difference(clipped.tolist(), [0.0] * whole.n, confidence=confidence).low
    return whole.model_copy(update={"low": low})
