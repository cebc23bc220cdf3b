"""How many more rows would show something, and with which chance: the one home of every such number.

A chance is that of the next measurement, on all rows together: the true rate is unknown, so it is drawn from what the
rows seen make likely, and the new rows come from it. The number of rows is the fewest at which the chance is LIKELY or,
where no number of rows makes it so likely, nine tenths of what MAX_ROWS give. What stays below UNLIKELY with as many is
called unlikely, and nothing else is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from smallfirst.base.stats.intervals import Estimate

MAX_ROWS = 20_000
"""No more rows of a part than this are asked for."""
LIKELY = 0.75
"""Chance at which a number of rows is enough to be asked for, where some number reaches it."""
UNLIKELY = 0.05
"""A chance below this, whatever the number of rows, is unlikely: fewer than one in twenty of these came."""
PARTS = tuple(part / 16 for part in (1, 2, 3, 4, 6, 8, 10, 12, 16))
"""Shares of the most confident answers, of which the one that fresh rows are most likely to show is foretold."""
_NEAR = 0.9
_WRONG_BEFORE = 0.8
"""Of the prior of an error among the most confident answers, Beta(0.8, 1): they are wrong less often than others."""
_RATES = (np.arange(200) + 0.5) / 200
"""Quantiles of the true rate over which a chance is the mean."""


class RowsNeeded(NamedTuple):
    """Rows that are missing."""

    n_more: int
    """Rows more, rounded up to two digits; MAX_ROWS where even they are unlikely to do."""
    chance: float
    """How likely as many are to show it, in [0, 1]."""

    @property
    def unlikely(self) -> bool:
        return self.chance < UNLIKELY


def fewest_rows(chance: Callable[[int], float], *, max_rows: int = MAX_ROWS) -> RowsNeeded:
    """Return the fewest rows more, or none, at which `chance(rows)`, which grows with them, is as likely as wanted."""
    most = chance(max_rows)
    if most < UNLIKELY:
        return RowsNeeded(max_rows, most)
    wanted = min(LIKELY, _NEAR * most)
    if (now := chance(0)) >= wanted:
        return RowsNeeded(0, now)
    short, enough = 0, min(8, max_rows)
    while enough < max_rows and chance(enough) < wanted:
        short, enough = enough, min(2 * enough, max_rows)
    while enough - short > max(1, enough // 40):
        middle = (short + enough) // 2
        short, enough = (short, middle) if chance(middle) >= wanted else (middle, enough)
    rows = min(max_rows, round_up_to_two_digits(enough))
    return RowsNeeded(rows, chance(rows))


def chance_of_share(
    right: int,
    n: int,
    n_more: int,
    least: float,
    *,
    confidence: float = 0.95,
    again: float = 1.0,
    beside: tuple[int, int] = (0, 0),
) -> float:
    """Return the chance that Wilson's interval of a share starts at `least` or above once there are `n_more` rows.

    `right` of `n` rows were right, and so many of so many rows `beside` them, which are not measured again. The true
    share is drawn from its posterior after both, under a flat prior. A share `again` of the `n` rows is measured again
    together with the new ones: all of them, or none.
    """
    total, counted = round(again * n) + n_more, round(again * right)
    z = float(special.ndtri(0.5 + confidence / 2))
    enough = math.ceil(total * least + z * math.sqrt(total * least * (1 - least)) - 1e-9)
    known, of = right + beside[0], n + beside[1]
    shares = special.betaincinv(known + 1, of - known + 1, _RATES)
    if enough <= counted:
        return 1.0 if total else 0.0
    return float(special.bdtrc(enough - counted - 1, n_more, shares).mean()) if enough - counted <= n_more else 0.0


def chance_of_error_bound(wrong: int, n: int, n_more: int, limit: float, *, level: float, again: float = 1.0) -> float:
    """Return the chance that an exact test at `level` shows an error of at most `limit` once there are `n_more` rows.

    As `chance_of_share`, of `wrong` among the `n` most confident answers; the test rejects where as few wrong ones have
    probability at most `level` at the limit.
    """
    total, counted = round(again * n) + n_more, round(again * wrong)
    may_be_wrong = np.arange(min(total, int(limit * total)) + 1 if total else 0)
    most = int((special.bdtr(may_be_wrong, total, limit) <= level).sum()) - 1 - counted
    if most < 0:
        return 0.0
    rates = special.betaincinv(wrong + _WRONG_BEFORE, n - wrong + 1, _RATES)
    return float(special.bdtr(min(most, n_more), n_more, rates).mean()) if n_more else 1.0


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


def chance_of_interval(estimate: Estimate, threshold: float, n_more: int, *, z: float, at_most: bool = False) -> float:
    """Return the chance that an interval meets a threshold once there are `n_more` rows beside its own.

    Of any figure whose interval shrinks as the root of n, z standard errors to the side that counts: true value and new
    rows are taken to be normal.
    """
    sign, end = (-1, estimate.high) if at_most else (1, estimate.low)
    width, room = abs(estimate.value - end), sign * (estimate.value - threshold)
    n, total = estimate.n, estimate.n + n_more
    if not n or not math.isfinite(width) or not math.isfinite(room):
        return 0.0
    short = room - width * math.sqrt(n / total)
    spread = width / z * math.sqrt(n_more / total)
    return float(special.ndtr(short / spread)) if spread > 0 else float(short >= 0)


def min_rows_without_error(limit: float, level: float) -> int:
    """Return the fewest rows that show an error of at most `limit` if none is wrong: (1 - limit)^n <= level."""
    return max(1, math.ceil(math.log(level) / math.log1p(-limit) - 1e-9)) if limit > 0 else sys.maxsize


def rows_for_upper_bound(rate: float, limit: float, *, confidence: float = 0.95, max_rows: int = 100_000) -> int | None:
    """Return the fewest rows at which an error `rate` has an exact upper bound of at most `limit`; None if none do."""
    if rate >= limit:
        return None
    for start in range(1, max_rows + 1, 1000):  # errors are whole numbers, so more rows may show less
        n = np.arange(start, min(start + 1000, max_rows + 1))
        errors = np.ceil(rate * n - 1e-9)  # 0.07 * 100 must be 7, not the 8 that rounding up 7.000…1 gives
        if (found := special.bdtr(errors, n, limit) <= 1 - confidence).any():
            return int(n[found.argmax()])
    return None


def round_up_to_two_digits(rows: int) -> int:
    """Round up to two digits, at least 1: the rates behind it are estimates themselves."""
    unit = int(10 ** max(0, len(str(rows)) - 2))
    return max(1, -(-rows // unit) * unit)


def shrunk_means(series: Sequence[Mapping[str, float]], *, least_spread: float, unknown: float) -> list[float]:
    """Return the mean of each series of values by row, shrunk towards the mean of all by empirical Bayes.

    Measured differences d between series are true ones, of variance t, and sampling error, of variance w; the best
    guess of a true one is d t / (t + w) (Efron and Morris 1975). w is read from differences by row, which rows that are
    difficult for all do not enlarge; t is what the spread of the measured ones is above w, at least `least_spread`².
    Without that floor (their positive part) differences that chance could explain would count as none; a mean of the
    Bayesian bootstrap would shrink nothing.

    A series of fewer rows is compared on these with the mean of those that have all; where none has, means count as
    measured. `unknown` is that of a series without a row.
    """
    rows = {key for one in series for key in one}
    complete = [one for one in series if len(one) == len(rows)]
    if not rows or not complete:
        return [float(np.mean(list(one.values()) or [unknown])) for one in series]
    mean = {key: sum(one[key] for one in complete) / len(complete) for key in rows}
    apart = [np.array([value - mean[key] for key, value in one.items()] or [0.0]) for one in series]
    level, m = sum(mean.values()) / len(rows), len(series)
    if m == 1:
        return [level]
    found = level + np.array([one.mean() for one in apart])
    of_rows = [float(one.var(ddof=1)) for one in apart if len(one) > 1]  # pooled, so that none overtakes on equal rows
    n = np.array([len(one) for one in apart])
    by_chance = (sum(of_rows) / len(of_rows) if of_rows else math.inf) * m / (m - 1) / n
    true = max(least_spread**2, float(found.var(ddof=1)) - float(by_chance.mean()))
    shrunk = found.mean() + true / (true + by_chance) * (found - found.mean())
    return [float(one) for one in shrunk]
