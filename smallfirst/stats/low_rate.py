"""A test, valid after every row at once, that an error rate is below a limit.

The evidence is the likelihood of the counts under a Beta prior cut off at the limit, divided by their likelihood at the
limit. While the rate is at least the limit, whatever came before, it is at most 1 on average, so it ever reaches 1 /
alpha with probability at most alpha (Ville 1939). Labelling may stop at any row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

PRIOR_ROWS = 2.0
"""The prior bets on rates well below the limit, as if so many times 1 / limit rows had been right before."""


def low_rate_evidence(n_errors: ArrayLike, n: ArrayLike, limit: float) -> np.ndarray:
    """Return the evidence, an e-value, that a rate is below `limit` in (0, 1), for each pair of counts."""
    wrong, right = np.asarray(n_errors, dtype=float), np.asarray(n, dtype=float) - np.asarray(n_errors, dtype=float)
    a, b = 0.5, 0.5 + PRIOR_ROWS / limit
    with np.errstate(divide="ignore"):  # no mass is left below the limit: no evidence
        inside = special.betaln(a + wrong, b + right) + np.log(special.betainc(a + wrong, b + right, limit))
    before = special.betaln(a, b) + np.log(special.betainc(a, b, limit))
    evidence = inside - before - wrong * np.log(limit) - right * np.log1p(-limit)
    return np.asarray(np.exp(np.minimum(evidence, 700.0)))


def more_right_rows(n_errors: int, n: int, limit: float, *, level: float, most: int = 20_000) -> int:
    """Return how many more rows, all of them right, bring the evidence to 1 / `level`; `most` if no fewer do."""
    evidence = low_rate_evidence(n_errors, n + np.arange(most), limit)
    shown = evidence * level >= 1
    return int(shown.argmax()) if shown.any() else most


def evidence_upper_bound(n_errors: ArrayLike, *, level: float) -> float:
    """Return an upper bound on a rate from the errors so far after 0, 1, 2, … rows, valid at every row at once."""
    counts = np.asarray(n_errors)
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        shown = (low_rate_evidence(counts, np.arange(len(counts)), middle) * level >= 1).any()
        low, high = (low, middle) if shown else (middle, high)
    return high
