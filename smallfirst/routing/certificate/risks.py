"""The risks that a guarantee can limit, each as evidence from one outcome of the cascade.

| risk | loss of a row | rows | test |
|---|---|---|---|
| error | the accepted answer is wrong | accepted rows | exact binomial |
| error, with foreign requests | the same, or the request is foreign | accepted, own and foreign rows | three of them |
| accuracy_loss | large right minus routed right: -1, 0 or 1 | rows with gold and large's answer | exact trinomial |
| cost | USD, discarded drafts included | all rows | betting |
| latency | slower than the limit | all rows, and requests sent alone | exact binomial, 5 % |
| escalation | the large model answers | all rows | exact binomial |

An escalated row that the large model was not asked counts as late, and costs as much as its most expensive answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import MAX_LATE_SHARE, Guarantee
from smallfirst.routing.certificate.outcomes import CascadeOutcome
from smallfirst.stats.bounds import betting_p_value, betting_upper_bound
from smallfirst.stats.intervals import upper_bound, wilson
from smallfirst.stats.trinomial import is_mean_below, trinomial_upper_bound

MIXTURE_LEVELS = (0.5, 0.1, 0.4)
"""Parts of the level for the error of own accepted rows, the share of own and the share of foreign rows accepted. The
second is loose in effect: all own rows measure it."""
GROWS_WITH_COVERAGE = frozenset({"error", "accuracy_loss"})
"""Risks that grow with the accepted share, so they are tested strict to loose; the others loose to strict."""


class RiskResult(Record):
    """What the chosen thresholds showed about one limit of the guarantee."""

    risk: str
    """`error`, `accuracy_loss`, `cost`, `latency` or `escalation`."""
    limit: float
    """The limit, in the guarantee's unit; for `latency` milliseconds."""
    value: float
    """The measured value; for `latency` the share of requests that were slower."""
    bound: float
    """Upper bound on it, at the level of this limit."""
    n: int


@dataclass(frozen=True)
class ShareEvidence:
    """A share of rows with a loss, tested by the exact binomial."""

    losses: int
    n: int
    limit: float
    samples: tuple[tuple[int, int], ...] = ()
    """Losses and size of further samples, each of a risk that adds to that of the rows; they share the level."""

    @property
    def value(self) -> float:
        return self.losses / max(1, self.n)

    def shows(self, level: float) -> bool:
        share, added = self._added(level)
        return (
            self.n > 0 and self.limit > added and bool(special.bdtr(self.losses, self.n, self.limit - added) <= share)
        )

    def bound(self, level: float) -> float:
        share, added = self._added(level)
        return min(1.0, added + upper_bound(self.losses, self.n, confidence=1 - share))

    def _added(self, level: float) -> tuple[float, float]:
        share = level / (1 + len(self.samples))
        return share, sum(upper_bound(*sample, confidence=1 - share) for sample in self.samples)


@dataclass(frozen=True)
class MixtureEvidence:
    """The error of accepted answers while a share `share` of the requests is foreign, each of which counts as wrong.

    With accepted shares A of own and F of foreign requests and an error e of own accepted answers, accepted answers
    are wrong at ((1 - share) e A + share F) / ((1 - share) A + share F), which grows with e, F and the share and falls
    with A: exact binomial bounds on the three, which divide the level, bound it for every smaller share as well.
    """

    losses: int
    n: int
    """Own accepted rows."""
    limit: float
    n_own: int
    """Own rows, accepted or not."""
    accepted_foreign: int
    n_foreign: int
    share: float
    """In (0, 1)."""

    @property
    def value(self) -> float:
        counts = (self.losses, self.n), (self.n, self.n_own), (self.accepted_foreign, self.n_foreign)
        return self._mixed(*(k / max(1, n) for k, n in counts))

    def shows(self, level: float) -> bool:
        return self.n > 0 and self.bound(level) <= self.limit

    def bound(self, level: float) -> float:
        error, accepted, foreign = (1 - part * level for part in MIXTURE_LEVELS)
        least = 1 - upper_bound(self.n_own - self.n, self.n_own, confidence=accepted)
        most = upper_bound(self.accepted_foreign, self.n_foreign, confidence=foreign)
        return self._mixed(upper_bound(self.losses, self.n, confidence=error), least, most)

    def _mixed(self, error: float, accepted: float, foreign: float) -> float:
        own, others = (1 - self.share) * accepted, self.share * foreign
        return (error * own + others) / (own + others) if own + others else 1.0


@dataclass(frozen=True)
class MeanEvidence:
    """A mean of values in [low, high], tested by betting."""

    values: np.ndarray
    limit: float
    low: float
    high: float
    scale: float = 1.0
    """From the unit of the values to the guarantee's."""

    @property
    def n(self) -> int:
        return int(self.values.size)

    @property
    def value(self) -> float:
        return self.scale * float(self.values.mean()) if self.values.size else 0.0

    def shows(self, level: float) -> bool:
        return self.n > 0 and betting_p_value(self.values, self.limit, low=self.low, high=self.high) <= level

    def bound(self, level: float) -> float:
        return self.scale * betting_upper_bound(self.values, confidence=1 - level, low=self.low, high=self.high)


@dataclass(frozen=True)
class DifferenceEvidence:
    """A mean of values in {-1, 0, 1}, tested by the exact trinomial."""

    losses: int
    """Values of 1."""
    gains: int
    """Values of -1."""
    n: int
    limit: float

    @property
    def value(self) -> float:
        return (self.losses - self.gains) / max(1, self.n)

    def shows(self, level: float) -> bool:
        return self.n > 0 and is_mean_below(self.limit, self.losses, self.gains, self.n, level=level)

    def bound(self, level: float) -> float:
        return trinomial_upper_bound(self.losses, self.gains, self.n, confidence=1 - level)


Evidence = ShareEvidence | MixtureEvidence | MeanEvidence | DifferenceEvidence
"""What the rows show about one limit."""


def evidence(risk: str, outcome: CascadeOutcome, limit: float) -> Evidence:
    """Return the evidence of an outcome on one limit of a guarantee."""
    return _RISKS[risk](outcome, limit)


def audit_limits(
    outcome: CascadeOutcome, accepted: np.ndarray, guarantee: Guarantee, error_bound: float
) -> dict[str, dict[str, float]]:
    """Return by risk and judge how many audited answers may be called wrong before the limit counts as broken.

    A person may call wrong what the guarantee allows (`error_bound` where it limits no errors); the large model also
    what is right where it is wrong itself. A kept answer loses accuracy only where the large model is right, so the
    limit on that leaves room for all that it had wrong. A limit that would be 1 or more shows nothing and is left out.
    """
    both = accepted & outcome.data.paired
    n, level = int(both.sum()), guarantee.confidence
    only_small = int((outcome.right & ~outcome.data.large_right)[both].sum())
    error = error_bound if guarantee.max_error is None else guarantee.max_error
    own_errors = 0.0 if outcome.data.labels == "large" else upper_bound(only_small, n, confidence=level)
    found = {"error": {"person": error, "large": error + own_errors}}
    if guarantee.max_accuracy_loss is not None:
        level = (1 + level) / 2
        large_wrong = upper_bound(int((~outcome.data.large_right)[both].sum()), n, confidence=level)
        kept = guarantee.max_accuracy_loss / max(1e-9, wilson(outcome.n_accepted, outcome.data.n).low)
        by_person = kept + large_wrong
        found["accuracy_loss"] = {
            "person": by_person,
            "large": by_person + upper_bound(only_small, n, confidence=level),
        }
    return {risk: {judge: most for judge, most in by.items() if most < 1} for risk, by in found.items()}


def _error(outcome: CascadeOutcome, limit: float) -> Evidence:
    losses, foreign = int((outcome.accepted & ~outcome.right).sum()), outcome.data.foreign
    if foreign is None or not foreign.max_share:
        return ShareEvidence(losses, outcome.n_accepted, limit)
    n_foreign, accepted = foreign.confidence.shape[1], outcome.n_foreign_accepted
    return MixtureEvidence(
        losses, outcome.n_accepted, limit, outcome.data.n, accepted, n_foreign, share=foreign.max_share
    )


def _accuracy_loss(outcome: CascadeOutcome, limit: float) -> Evidence:
    both = outcome.data.paired
    large, routed = outcome.data.large_right[both], outcome.right[both]
    return DifferenceEvidence(int((large & ~routed).sum()), int((routed & ~large).sum()), int(both.sum()), limit)


def _cost(outcome: CascadeOutcome, limit: float) -> Evidence:
    data, most = outcome.data, max(outcome.max_cost_usd, 1e-12)
    if not data.large_known and not outcome.all_accepted:
        return MeanEvidence(np.zeros(0), limit / 1000, 0.0, most, scale=1000.0)
    large = data.cost_usd[-1]
    more = np.where(~outcome.accepted & ~data.asked, large[data.asked].max(initial=0.0) - large, 0.0)
    return MeanEvidence(outcome.select(data.cumulative_cost_usd) + more, limit / 1000, 0.0, most, scale=1000.0)


def _latency(outcome: CascadeOutcome, limit: float) -> Evidence:
    late = outcome.select(outcome.data.cumulative_latency_ms) > limit
    late |= ~outcome.accepted & ~outcome.data.asked
    return ShareEvidence(int(late.sum()), outcome.data.n, MAX_LATE_SHARE, outcome.data.probes)


def _escalation(outcome: CascadeOutcome, limit: float) -> Evidence:
    return ShareEvidence(outcome.data.n - outcome.n_accepted, outcome.data.n, limit)


_RISKS: dict[str, Callable[[CascadeOutcome, float], Evidence]] = {
    "error": _error,
    "accuracy_loss": _accuracy_loss,
    "cost": _cost,
    "latency": _latency,
    "escalation": _escalation,
}
