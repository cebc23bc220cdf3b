"""Where the search for a threshold begins, and which part of the level each start has.

A start must not depend on which calibration answers are right. Selection rows may choose it, because they certify
nothing; without them there are several, since nobody knows where the model is surely good enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from smallfirst.stats.sample_size import min_rows_without_error

Starts = tuple[tuple[float, float], ...]
"""Shares of the rows accepted at the starts, ascending, each with its share of the level; these sum to 1."""

DEFAULT_STARTS: Starts = ((1 / 8, 1 / 4), (1 / 4, 1 / 4), (1 / 2, 1 / 2))
CHOICES: tuple[Starts, ...] = (
    *(((accepted, 1.0),) for accepted in (1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16, 5 / 8, 3 / 4)),
    DEFAULT_STARTS,
)
"""Of these selection rows choose; the first of equally good ones."""
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
    """Return which of CHOICES keeps most of `n` rows like these selection rows; DEFAULT_STARTS if none keeps any.

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
    p_values = np.where(accepted > 0, special.bdtr(losses, accepted, limit), 1.0)
    means = [_mean_kept(accepted, p_values, start_rows(n, limit, level, starts), level) for starts in CHOICES]
    best = int(np.argmax(means))
    return CHOICES[best] if means[best] > 0 else DEFAULT_STARTS


def _mean_kept(accepted: np.ndarray, p_values: np.ndarray, starts: Sequence[tuple[int, float]], level: float) -> float:
    """Return the mean over worlds of the rows accepted where the walks from `starts` end, as in `stats.graphical`."""
    kept, carried = np.zeros(len(accepted)), np.zeros(len(accepted))
    ends = [*(rows for rows, _ in starts[1:]), np.inf]
    for (first, share), end in zip(starts, ends, strict=True):
        shares = carried + share
        inside = (accepted >= first) & (accepted < end)
        failed = np.cumsum(inside & (p_values > (shares * level)[:, None]), axis=1) > 0
        kept = np.maximum(kept, np.where(inside & ~failed, accepted, 0).max(axis=1))
        carried = np.where(failed[:, -1], 0.0, shares)
    return float(kept.mean())
