"""Shares among rows that are not independent: rows of one group, or fields of one row, are one observation, a unit.

Five paraphrases of a case, or the invoices of one layout, are right and wrong together. A group is a unit, and so is a
row without one; the claim is about a request of a group drawn like these groups, each group counting alike. Two tests
of "at most `limit` of what is kept is wrong" are valid whatever depends on what inside a unit. With few units one part
of each is drawn at random, whatever the answers, and the exact binomial tests what is kept among these. With many, the
mean over units of wrong - limit * kept is bet to be below 0 (Waudby-Smith and Ramdas 2024): the whole unit counts, but
small samples pay for not knowing the variance. How many units there are decides which.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT
from smallfirst.routing.certificate.threshold_search import DEFAULT_STARTS, rejected_on_path, search_threshold
from smallfirst.stats.bounds import betting_p_value
from smallfirst.stats.intervals import edge, upper_bound

STEPS = 100
"""Thresholds tried, from strict to loose."""
MIN_EXPECTED = 20
"""Wrong units that the limit allows for (units times limit) from which means of units are bet on."""
_SEED = 0


class UnitSearch(NamedTuple):
    """The loosest threshold at which a limit on the share of wrong parts is shown."""

    threshold: float
    """Least confidence that is kept; NEVER_ACCEPT if none is shown."""
    bound: float
    """Upper bound on the share of kept parts that are wrong, at the level of the search; 1 if none is shown."""


@dataclass(frozen=True)
class Parts:
    """The parts (an answer, or its fields) of n rows."""

    confidence: np.ndarray
    """By row and part, in [0, 1]."""
    wrong: np.ndarray
    """By row and part."""
    group: np.ndarray | None = None
    """By row: its group, empty for none; None where no row has one."""

    @property
    def n(self) -> int:
        return len(self.confidence)

    @property
    def unit(self) -> np.ndarray:
        return unit_numbers(self.group, self.n)

    def means(self, parts: np.ndarray) -> np.ndarray:
        """Return by unit the mean of `parts` (rows, parts), in [0, 1]."""
        means: np.ndarray = np.bincount(self.unit, weights=parts.mean(axis=1)) / np.bincount(self.unit)
        return means

    def search(self, limit: float, *, level: float) -> UnitSearch:
        """Return the loosest threshold at which at most `limit` of the kept parts are shown to be wrong.

        All thresholds tried hold together at `level`; they are quantiles of the confidences, whatever is right.
        """
        if not self.n:
            return UnitSearch(NEVER_ACCEPT, 1.0)
        search = self._search_drawn if len(set(self.unit.tolist())) * limit < MIN_EXPECTED else self._search_means
        return search(limit, level)

    def _search_drawn(self, limit: float, level: float) -> UnitSearch:
        draw = np.random.default_rng(_SEED)
        rows = one_row_a_unit(self.group, self.n)
        part = draw.integers(0, self.confidence.shape[1], len(rows))
        confidence, wrong = self.confidence[rows, part], self.wrong[rows, part]
        guarantee = Guarantee(max_error=limit, confidence=1 - level)
        found = search_threshold(confidence.tolist(), (~wrong).tolist(), guarantee)
        if not found.n_accepted:
            return UnitSearch(NEVER_ACCEPT, 1.0)
        return UnitSearch(found.threshold, upper_bound(found.n_errors, found.n_accepted, confidence=1 - level))

    def _search_means(self, limit: float, level: float) -> UnitSearch:
        descending = np.sort(self.confidence, axis=None)[::-1]
        tried = np.unique(np.ceil(np.arange(1, STEPS + 1) / STEPS * descending.size).astype(int)) - 1
        thresholds = np.unique(descending[tried])[::-1]

        def p_value(at: int, limit: float, wrong: np.ndarray) -> float:
            kept = self.confidence >= thresholds[at]
            excess = self.means(kept & wrong) - limit * self.means(kept)
            return betting_p_value(excess, 0.0, low=-limit, high=1 - limit)

        nothing = np.zeros_like(self.wrong)
        places = range(len(thresholds))
        first = bisect_left(places, True, key=lambda at: p_value(at, limit, nothing) <= level)
        p_values = np.array([p_value(at, limit, self.wrong) for at in places])
        starts = [(max(first, int(share * len(places))), weight) for share, weight in DEFAULT_STARTS]
        found = rejected_on_path(lambda a, b, share: p_values[a:b] <= share, starts, len(places), level)
        if not found.any():
            return UnitSearch(NEVER_ACCEPT, 1.0)
        best = int(np.flatnonzero(found)[-1])
        # The p-value falls as the limit grows.
        bound = edge(0.0, limit, lambda smaller: p_value(best, smaller, self.wrong) > level, within=1e-4)
        return UnitSearch(float(thresholds[best]), bound)


def unit_numbers(group: np.ndarray | None, n: int) -> np.ndarray:
    """Return the number of each row's unit (n,), counted from 0: its group, or the row where that is empty."""
    names = range(n) if group is None else [name or i for i, name in enumerate(group.tolist())]
    places: dict[object, int] = {}
    return np.array([places.setdefault(name, len(places)) for name in names], dtype=int)


def one_row_a_unit(group: np.ndarray | None, n: int) -> np.ndarray:
    """Return the indices, ascending, of one row of each unit, drawn alike whatever the answers."""
    order = np.random.default_rng(_SEED).permutation(n)
    _, first = np.unique(unit_numbers(group, n)[order], return_index=True)
    return np.sort(order[first])
