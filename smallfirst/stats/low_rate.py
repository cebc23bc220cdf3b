"""A test, valid after every row at once, that an error rate is below a limit.

The evidence is the likelihood of the counts under a Beta prior cut off at the limit, divided by their likelihood at the
limit. While the rate is at least the limit, whatever came before, it is at most 1 on average, so it ever reaches 1 /
alpha with probability at most alpha (Ville 1939). Labelling may stop at any row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


class RatePrior(NamedTuple):
    """A Beta prior of an error rate: where evidence is expected. Any prior is valid if no label decided it."""

    errors: float = 0.5
    """First parameter, above 0."""
    right: float = 0.5
    """Second parameter, above 0."""

    @classmethod
    def from_pilot(cls, n_errors: float, n: float, *, weight: float = 0.5) -> RatePrior:
        """Return the prior after a pilot with so many errors in `n` rows, each counted at `weight` in [0, 1]."""
        return cls(0.5 + weight * n_errors, 0.5 + weight * (n - n_errors))


def low_rate_evidence(n_errors: ArrayLike, n: ArrayLike, limit: float, prior: RatePrior) -> np.ndarray:
    """Return the evidence, an e-value, that a rate is below `limit` in (0, 1), for each pair of counts."""
    wrong, right = np.asarray(n_errors, dtype=float), np.asarray(n, dtype=float) - np.asarray(n_errors, dtype=float)
    a, b = prior
    tiny = np.finfo(float).tiny
    whole = special.betaln(a + wrong, b + right) + np.log(special.betainc(a + wrong, b + right, limit) + tiny)
    before = special.betaln(a, b) + np.log(special.betainc(a, b, limit) + tiny)
    return np.asarray(np.exp(np.minimum(whole - before - wrong * np.log(limit) - right * np.log1p(-limit), 700.0)))


def more_right_rows(n_errors: int, n: int, limit: float, prior: RatePrior, *, level: float, most: int = 20_000) -> int:
    """Return how many more rows, all of them right, bring the evidence to 1 / `level`; `most` if no fewer do."""
    evidence = low_rate_evidence(n_errors, n + np.arange(most), limit, prior)
    shown = evidence * level >= 1
    return int(shown.argmax()) if shown.any() else most


def evidence_upper_bound(wrong: ArrayLike, prior: RatePrior, *, level: float) -> float:
    """Return an upper bound on the rate after these rows in order (1: an error), valid at every row at once."""
    errors = np.cumsum(np.asarray(wrong, dtype=float))
    n = np.arange(1, len(errors) + 1)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        shown = bool((low_rate_evidence(errors, n, middle, prior) * level >= 1).any()) if len(errors) else False
        low, high = (low, middle) if shown else (middle, high)
    return high
