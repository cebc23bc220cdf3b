"""Which accepted answers are audited: uncertain ones more often, and more of all while recent audits look bad.

Each accepted answer has a known chance, at least 1 / MAX_WEIGHT of the mean one, and its audit the inverse weight, so
tests and intervals stay valid whatever was chosen here (`smallfirst.stats.sequential`). The choice affects how soon an
alarm comes. With a reserve the number of audits is bounded: of any n accepted answers in the live state, at most
`audit_share` n plus the reserve are expected to be audited.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from smallfirst.routing.budget import SharedSums
from smallfirst.routing.certificate.summary import ThresholdPoint
from smallfirst.stats.intervals import Estimate, edge
from smallfirst.stats.sequential import weighted_interval

MAX_WEIGHT = 2.0
"""Largest weight of an audit: no accepted answer has less than 1 / MAX_WEIGHT of the mean chance."""
BURST = 5.0
"""Times `audit_share` that are audited while recent audits look bad and the reserve lasts."""
SAVING = 0.1
"""Part of `audit_share` that is saved in quiet times until the reserve is full."""
SUSPICION = 3.3
"""Evidence of recent audits (`GuaranteeTest.suspicion`) from which on they look bad: two errors close together."""
_BANDS = (0.125, 0.25, 0.5, 1.0)
"""Ends of the bands of confidence, from the least accepted up, as shares of accepted calibration rows."""
_PRIOR_ROWS = 10
"""Rows with the mean error that are added to each band."""
_RESERVE = "reserve"
"""Audits that were made beyond the share, less what has refilled."""


class AuditDraw(NamedTuple):
    """The chance of an accepted answer to be audited."""

    propensity: float
    """In (0, 1]."""
    weight: float
    """The mean chance at this moment over this one, in (0, MAX_WEIGHT]."""


class AuditAllocation(NamedTuple):
    """The chances of an audit by confidence, relative to their mean."""

    cuts: tuple[float, ...] = ()
    """Confidences at which the next level begins, rising."""
    levels: tuple[float, ...] = (1.0,)
    """One more than cuts, each at least 1 / MAX_WEIGHT; their mean over accepted calibration rows is 1."""

    def draw(self, rate: float, confidence: float | None) -> AuditDraw:
        """Return the chance where `rate` of all accepted answers are audited; None has the mean chance."""
        level = 1.0 if confidence is None else self.levels[bisect_right(self.cuts, confidence)]
        # The more are audited, the more alike the chances must be: no chance is above 1.
        propensity = min(1.0, rate * (1 + (level - 1) * (1 - rate)))
        return AuditDraw(propensity, rate / propensity)


UNIFORM = AuditAllocation()


def allocate_audits(curve: Sequence[ThresholdPoint], threshold: float) -> AuditAllocation:
    """Return chances in proportion to the standard deviation of the error by the last stage's confidence.

    This is Neyman's allocation (1934) with a floor, on the calibration rows of a certificate's curve at or above its
    threshold. Without such rows all chances are equal.
    """
    points = sorted((point for point in curve if point.threshold >= threshold), key=lambda point: -point.threshold)
    steps = list(pairwise(points))
    accepted = sum(after.n_accepted - before.n_accepted for before, after in steps)
    if accepted <= 0:
        return UNIFORM
    bands = [[0, 0, 0.0] for _ in _BANDS]  # rows, errors, least confidence
    loose = 0
    for before, after in reversed(steps):
        rows = after.n_accepted - before.n_accepted
        place = next(i for i, end in enumerate(_BANDS) if (loose + rows / 2) / accepted <= end)
        band = bands[place]
        band[2] = band[2] if band[0] else after.threshold
        band[0], band[1] = band[0] + rows, band[1] + after.n_errors - before.n_errors
        loose += rows
    found = np.array([band for band in bands if band[0]])
    return AuditAllocation(tuple(found[1:, 2].tolist()), _levels(found[:, 0], found[:, 1]))


def _levels(rows: np.ndarray, errors: np.ndarray) -> tuple[float, ...]:
    """Return relative chances of bands, from the least confidence up, which never rise with it; their mean is 1."""
    usual = errors.sum() / rows.sum()
    rates = (errors + _PRIOR_ROWS * usual) / (rows + _PRIOR_ROWS)
    rates = np.maximum.accumulate(np.clip(rates, 1e-6, 0.5)[::-1])[::-1]
    spread, floor = np.sqrt(rates * (1 - rates)), 1 / MAX_WEIGHT
    high = edge(0.0, 1 / float(spread.min()), lambda m: np.average(np.maximum(floor, m * spread), weights=rows) < 1)
    return tuple(np.maximum(floor, high * spread).tolist())


def share_wrong(audits: Iterable[tuple[float, bool]]) -> Estimate:
    """Return the share of wrong answers from weights and verdicts of audits, 95 %, valid at every moment."""
    counts = Counter((min(round(weight, 9), MAX_WEIGHT), wrong) for weight, wrong in audits)
    return weighted_interval(counts, max_weight=MAX_WEIGHT if any(weight != 1 for weight, _ in counts) else 1.0)


class AuditBudget:
    """How many accepted answers are audited in the live state, given how recent audits look."""

    def __init__(self, share: float, reserve: float, sums: SharedSums | None = None) -> None:
        """`reserve` audits may be spent beyond `share`, which refill; it starts full. 0: the share never changes.

        What is spent of the reserve is in `sums`, which processes may share.
        """
        self._share, self._reserve, self._sums = share, reserve, sums or SharedSums()

    def rate(self, suspicion: float) -> float:
        """Return the mean chance of the next accepted answer, in (0, 1]."""
        if not self._reserve or (self._spent < 1 and suspicion < SUSPICION):
            return self._share
        if self.spent or suspicion < SUSPICION:
            return self._share * (1 - SAVING)
        return min(1.0, BURST * self._share)

    @property
    def spent(self) -> bool:
        """True if there is a reserve and nothing of it is left."""
        return 0 < self._reserve < self._spent + 1

    def pay(self, propensity: float) -> None:
        """Count an accepted answer that had this chance."""
        self._sums.add(_RESERVE, propensity - self._share)

    @property
    def _spent(self) -> float:
        return self._sums[_RESERVE]
