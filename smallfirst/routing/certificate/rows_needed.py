"""How many more calibration rows a refused guarantee needs, and how likely as many are to show it.

Of one stage and a limit on errors it is computed: a part of the most confident answers is to be shown. For other
guarantees the future is drawn from the rows that were seen: each world has other true rates, as likely as these rows
make them (the Bayesian bootstrap, Rubin 1981, of the rows and one wrong answer more), and its new rows come from these
rates. The guarantee is then tested on old and new rows together, at the level of the next look.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import special

from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.stats.sample_size import MAX_ROWS, RowsNeeded, chance_of_error_bound, fewest_rows

PARTS = tuple(part / 16 for part in (1, 2, 3, 4, 6, 8, 10, 12, 16))
"""Shares of the most confident answers, of which the one that fresh rows are most likely to show is foretold."""


def rows_for_error(
    confidence: np.ndarray,
    right: np.ndarray,
    limit: float,
    level: float,
    *,
    refused_at: float | None = None,
    again: float = 1.0,
    n_new: int = 0,
    max_rows: int = MAX_ROWS,
) -> RowsNeeded:
    """Return the fewest rows more with which a part of the most confident answers is likely to be shown.

    `refused_at`: the level at which these rows showed nothing. `again`: share of these rows that is tested again with
    the new ones; `n_new`: rows that will be tested as well, and are not answered yet.
    """
    n, order = len(right), np.argsort(-np.asarray(confidence), kind="stable")
    wrong = np.cumsum(~np.asarray(right, dtype=bool)[order])
    kept = {part: max(1, round(part * n)) for part in PARTS} if n else {}
    if refused_at is not None:  # what these rows show by themselves is no place where the search begins
        kept = {part: rows for part, rows in kept.items() if special.bdtr(wrong[rows - 1], rows, limit) > refused_at}

    def likely(part: float, n_more: int, share: float) -> float:
        rows, more = kept[part], round(part * (n_new + n_more + (again - share) * n))
        return chance_of_error_bound(int(wrong[rows - 1]), rows, more, limit, level=level, again=share)

    def chance(n_more: int) -> float:
        # The search begins where other rows let it be shown, not where these happen to be without an error.
        start = max(kept, key=lambda part: likely(part, n_more, 0.0), default=None)
        return 0.0 if start is None else likely(start, n_more, again)

    return fewest_rows(chance, max_rows=max_rows) if n else RowsNeeded(0, 0.0)


def rows_needed(
    data: CascadeData,
    shows: Callable[[CascadeData], bool],
    *,
    n_worlds: int = 40,
    max_rows: int = MAX_ROWS,
) -> RowsNeeded:
    """Return the fewest rows more at which `shows(rows)` is likely, or the most tried and their chance."""

    def chance(n_more: int) -> float:
        worlds = (_drawn(data, n_more, seed) for seed in range(n_worlds))
        return sum(shows(world) for world in worlds) / n_worlds

    return fewest_rows(chance, max_rows=max_rows) if data.n else RowsNeeded(0, 0.0)


def _drawn(data: CascadeData, n_more: int, seed: int) -> CascadeData:
    """Return the rows with `n_more` of one possible future, in which a row like any of them may be wrong."""
    draw = np.random.default_rng(seed)
    weights = draw.dirichlet(np.ones(data.n + 1))
    new = draw.choice(data.n + 1, n_more, p=weights)
    source = np.where(new == data.n, draw.integers(data.n), new)
    drawn = data.take(np.concatenate([np.arange(data.n), source]))
    right = drawn.right.copy()
    right[:, data.n :] &= new != data.n
    return dataclasses.replace(drawn, right=right)
