"""Where the search for a threshold begins, and which part of the level each start has.

A start must not depend on which calibration answers are right. Selection rows may choose it, because they certify
nothing; without them there are several, since nobody knows where the model is surely good enough.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from smallfirst.stats.sample_size import min_rows_without_error

Starts = tuple[tuple[float, float], ...]
"""Shares of the rows accepted at the starts, ascending, each with its share of the level; these sum to 1."""

DEFAULT_STARTS: Starts = ((1 / 8, 1 / 4), (1 / 4, 1 / 4), (1 / 2, 1 / 2))
SINGLE_STARTS = (1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16, 5 / 8, 3 / 4)
"""Shares of which selection rows choose one; the first of equally good ones."""
MIN_SELECTION_ROWS = 20
_WORLDS = 50
_PLACES = 100


def start_rows(n: int, limit: float, level: float, starts: Starts = DEFAULT_STARTS) -> list[tuple[int, float]]:
    """Return how many of `n` rows are accepted at each start, ascending, with its share of the level.

    A start has at least the rows that show the limit without an error. Where that is no earlier than the next start,
    it hands its share of the level to that one and is left out.
    """
    found, waiting = list[tuple[int, float]](), 0.0
    for i, (accepted, share) in enumerate(starts):
        waiting += share
        rows = max(math.ceil(accepted * n), min_rows_without_error(limit, waiting * level))
        if i + 1 == len(starts) or rows < starts[i + 1][0] * n:
            found.append((rows, waiting))
            waiting = 0.0
    return found


def choose_starts(scores: np.ndarray, right: np.ndarray, n: int, limit: float, level: float) -> Starts:
    """Return the single start that keeps most of `n` rows like these selection rows; DEFAULT_STARTS if none keeps any.

    `scores`: higher is accepted earlier. The rows to come are drawn from rates as likely as the selection rows make
    them (the Bayesian bootstrap, Rubin 1981, of these rows and one wrong answer more).
    """
    m = len(right)
    if m < MIN_SELECTION_ROWS:
        return DEFAULT_STARTS
    draw = np.random.default_rng(0)
    wrong = ~np.asarray(right, dtype=bool)[np.argsort(-np.asarray(scores, dtype=float), kind="stable")]
    counts = draw.multinomial(n, draw.dirichlet(np.ones(m + 1), _WORLDS))  # (worlds, rows and the wrong one)
    more = draw.multinomial(counts[:, m], np.full(m, 1 / m))
    places = np.unique(np.linspace(0, m - 1, _PLACES).astype(int))
    accepted = np.cumsum(counts[:, :m] + more, axis=1)[:, places]
    losses = np.cumsum(counts[:, :m] * wrong + more, axis=1)[:, places]
    shown = special.bdtr(losses, accepted, limit) <= level
    means = [_mean_kept(accepted, shown, start_rows(n, limit, level, ((share, 1.0),))[0][0]) for share in SINGLE_STARTS]
    best = int(np.argmax(means))
    return ((SINGLE_STARTS[best], 1.0),) if means[best] > 0 else DEFAULT_STARTS


def _mean_kept(accepted: np.ndarray, shown: np.ndarray, first: int) -> float:
    """Return the mean number of rows accepted where a walk from `first` accepted rows on ends."""
    failed = (accepted >= first) & ~shown
    ends = np.where(failed.any(axis=1), failed.argmax(axis=1), accepted.shape[1])
    last = np.take_along_axis(accepted, np.maximum(ends - 1, 0)[:, None], axis=1)[:, 0]
    return float(np.where((ends > 0) & (last >= first), last, 0).mean())
