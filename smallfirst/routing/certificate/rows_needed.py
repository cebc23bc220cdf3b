"""How many more calibration rows a refused guarantee needs, and how likely as many are to show it.

The future is drawn from the rows that were seen: each world has other true rates, as likely as these rows make them
(the Bayesian bootstrap, Rubin 1981, of the rows and one wrong answer more), and its new rows come from these rates. The
guarantee is then tested on old and new rows together, at the level of the next look.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.stats.sample_size import round_up_to_two_digits

MAX_ROWS = 20_000
"""No more rows than this are suggested."""
MIN_CHANCE = 0.5
"""A number of rows is advised if as many would show the guarantee at least this often."""
FIRST_STEP = 25


class RowsNeeded(NamedTuple):
    """Advice about more calibration rows."""

    n_more: int
    """Rows more; the most that were tried if none are likely enough to do."""
    chance: float
    """How often as many would show the guarantee, in [0, 1]."""


def rows_needed(
    data: CascadeData, shows: Callable[[CascadeData], bool], *, n_worlds: int = 40, max_rows: int = MAX_ROWS
) -> RowsNeeded:
    """Return the fewest rows more at which `shows(rows)` is likely, or the most tried and their chance."""

    def chance(n_more: int) -> float:
        worlds = (_drawn(data, n_more, seed) for seed in range(n_worlds))
        return sum(shows(world) for world in worlds) / n_worlds

    if not data.n:
        return RowsNeeded(0, 0.0)
    enough, tried = FIRST_STEP, chance(FIRST_STEP)
    while tried < MIN_CHANCE and enough < max_rows:
        enough = min(2 * enough, max_rows)
        tried = chance(enough)
    short = enough // 2 if enough > FIRST_STEP else 0
    while tried >= MIN_CHANCE and enough - short > max(5, enough // 20):
        middle = (short + enough) // 2
        there = chance(middle)
        short, enough, tried = (short, middle, there) if there >= MIN_CHANCE else (middle, enough, tried)
    return RowsNeeded(round_up_to_two_digits(enough), tried)


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
