"""The risks a promise can limit, each as evidence from one walk through the cascade.

| risk | loss of a row | rows it speaks of | test |
|---|---|---|---|
| wrong | the kept answer is wrong | kept rows | exact binomial, or prediction-powered |
| regret | large right minus routed right: -1, 0 or 1 | rows with gold and the large model's answer | betting |
| cost | USD of the walk, drafts included | all rows | betting |
| late | the walk is slower than the limit | all rows | exact binomial, 5 % |
| escalated | the large model answers | all rows | exact binomial |

A row that is sent on and that the large model was not asked counts as late, and costs as much as its dearest answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import special

from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import MAX_LATE_SHARE, Guarantee
from smallfirst.routing.certificate.outcomes import CascadeOutcome
from smallfirst.stats.bounds import (
    betting_p_value,
    betting_upper_bound,
    corrections,
    prediction_powered_shows,
    rows_to_reject,
)
from smallfirst.stats.intervals import upper_bound
from smallfirst.stats.sample_size import rows_for_upper_bound

GROWS_WITH_COVERAGE = frozenset({"wrong", "regret"})
"""Risks that grow with what is kept, so they are tested strict to loose; the others loose to strict."""


class RiskResult(Record):
    """What the chosen thresholds showed about one limit of the promise."""

    risk: str
    """`wrong`, `regret`, `cost`, `late` or `escalated`."""
    limit: float
    """What is promised, in the promise's unit; for `late` milliseconds."""
    value: float
    """What was seen; for `late` the share of requests that were slower."""
    bound: float
    """Upper bound on it, at the level of this limit."""
    n: int
    """Rows it rests on."""


class Evidence(Protocol):
    """What the rows say about one limit."""

    @property
    def n(self) -> int:
        """Rows it rests on."""

    @property
    def value(self) -> float:
        """What was seen, in the limit's unit."""

    def shows(self, level: float) -> bool:
        """True if the limit is shown to be kept, with an error probability of at most `level`."""

    def bound(self, level: float) -> float:
        """Upper bound in the limit's unit, wrong with a probability of at most `level`."""

    def rows_needed(self, level: float, most: int) -> int | None:
        """How many rows like these would show it; None if none up to `most` would."""


@dataclass(frozen=True)
class ShareEvidence:
    """How many of n rows are losses."""

    losses: int
    """Rows with a loss."""
    n: int
    """Rows."""
    limit: float
    """Largest share."""

    @property
    def value(self) -> float:
        """Share seen."""
        return self.losses / max(1, self.n)

    def shows(self, level: float) -> bool:
        """By the exact binomial test (`stats.binomial_tail`, without the time its arguments are checked in)."""
        return self.n > 0 and bool(special.bdtr(self.losses, self.n, self.limit) <= level)

    def bound(self, level: float) -> float:
        """Clopper and Pearson's."""
        return upper_bound(self.losses, self.n, confidence=1 - level)

    def rows_needed(self, level: float, most: int) -> int | None:
        """At the share seen."""
        return rows_for_upper_bound(self.value, self.limit, confidence=1 - level, max_rows=most) if most > 0 else None


@dataclass(frozen=True)
class MeanEvidence:
    """Values in [low, high], and the largest mean they may have."""

    values: np.ndarray
    """One a row."""
    limit: float
    """Largest mean, in the unit of the values."""
    low: float
    """Least possible value."""
    high: float
    """Greatest possible value."""
    scale: float = 1.0
    """From the unit of the values to the promise's."""

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.values.size)

    @property
    def value(self) -> float:
        """Mean seen."""
        return self.scale * float(self.values.mean()) if self.values.size else 0.0

    def shows(self, level: float) -> bool:
        """By betting."""
        return self.n > 0 and betting_p_value(self.values, self.limit, low=self.low, high=self.high) <= level

    def bound(self, level: float) -> float:
        """By betting."""
        return self.scale * betting_upper_bound(self.values, confidence=1 - level, low=self.low, high=self.high)

    def rows_needed(self, level: float, most: int) -> int | None:
        """If more rows were spread like these."""
        span = self.high - self.low
        return rows_to_reject(
            (self.values - self.low) / span, (self.limit - self.low) / span, level=level, max_rows=most
        )


@dataclass(frozen=True)
class PredictionPoweredEvidence:
    """Errors by the large model's judgement on many rows, and what gold says on some of them."""

    judged: tuple[int, int]
    """Kept answers that differ from the large model's, and kept answers."""
    correction: np.ndarray
    """True minus judged error on kept rows with gold."""
    limit: float
    """Largest share wrong."""

    @property
    def n(self) -> int:
        """Kept rows."""
        return self.judged[1]

    @property
    def value(self) -> float:
        """Judged error, corrected."""
        correction = float(self.correction.mean()) if self.correction.size else 0.0
        return self.judged[0] / max(1, self.n) + correction

    def shows(self, level: float) -> bool:
        """By the prediction-powered bound."""
        return self.n > 0 and prediction_powered_shows(self.judged, self.correction, self.limit, level=level)

    def bound(self, level: float) -> float:
        """The least limit it would show."""
        shown, open_ = 1.0, 0.0
        while shown - open_ > 1e-4:
            middle = (shown + open_) / 2
            good = prediction_powered_shows(self.judged, self.correction, middle, level=level)
            shown, open_ = (middle, open_) if good else (shown, middle)
        return shown

    def rows_needed(self, level: float, most: int) -> int | None:
        """The least multiple of today's rows, gold ones too, that would show it."""
        if self.value >= self.limit:
            return None
        for times in range(1, min(64, most // max(1, self.n)) + 1):
            judged = (times * self.judged[0], times * self.judged[1])
            if prediction_powered_shows(judged, np.tile(self.correction, times), self.limit, level=level):
                return times * self.n
        return None


def evidence(name: str, walk: CascadeOutcome, limit: float) -> Evidence:
    """The evidence of `walk` on one limit of a promise, by the risk's short name."""
    return _RISKS[name](walk, limit)


def audit_limit(walk: CascadeOutcome, kept: np.ndarray, promise: Guarantee) -> float | None:
    """How often kept answers may differ from the large model's before they are wrong more often than promised.

    Promised error + upper bound of «right, where the large model is wrong», from rows with both. None if there are no
    such rows, if wrong answers are not limited, or if even differing always would show nothing.
    """
    if promise.at_most_wrong is None or walk.answers.labels == "large":
        return promise.at_most_wrong
    both = kept & walk.answers.paired
    alone = int((walk.right & ~walk.answers.large_right)[both].sum())
    limit = promise.at_most_wrong + upper_bound(alone, int(both.sum()), confidence=promise.confidence)
    return limit if limit < 1 else None


def _wrong(walk: CascadeOutcome, limit: float) -> Evidence:
    rows, kept = walk.answers, walk.kept
    if rows.labels != "large+gold":
        return ShareEvidence(int((kept & ~walk.right).sum()), walk.n_kept, limit)
    agrees = walk.select_taken(np.vstack([rows.agrees, rows.asked]))
    known = kept & rows.gold
    return PredictionPoweredEvidence(
        (int((kept & ~agrees).sum()), walk.n_kept), corrections(~walk.right[known], ~agrees[known]), limit
    )


def _regret(walk: CascadeOutcome, limit: float) -> Evidence:
    both = walk.answers.paired
    lost = walk.answers.large_right[both].astype(float) - walk.right[both]
    return MeanEvidence(lost, limit, -1.0, 1.0)


def _cost(walk: CascadeOutcome, limit: float) -> Evidence:
    rows, most = walk.answers, max(walk.max_cost_usd, 1e-12)
    if not rows.large_known and not walk.all_kept:
        return MeanEvidence(np.zeros(0), limit / 1000, 0.0, most, scale=1000.0)
    large = rows.cost_usd[-1]
    more = np.where(~walk.kept & ~rows.asked, large[rows.asked].max(initial=0.0) - large, 0.0)
    return MeanEvidence(walk.select_taken(rows.cumulative_cost_usd) + more, limit / 1000, 0.0, most, scale=1000.0)


def _late(walk: CascadeOutcome, limit: float) -> Evidence:
    late = walk.select_taken(walk.answers.cumulative_latency_ms) > limit
    late |= ~walk.kept & ~walk.answers.asked
    return ShareEvidence(int(late.sum()), walk.answers.n, MAX_LATE_SHARE)


def _escalated(walk: CascadeOutcome, limit: float) -> Evidence:
    return ShareEvidence(walk.answers.n - walk.n_kept, walk.answers.n, limit)


_RISKS: dict[str, Callable[[CascadeOutcome, float], Evidence]] = {
    "wrong": _wrong,
    "regret": _regret,
    "cost": _cost,
    "late": _late,
    "escalated": _escalated,
}
