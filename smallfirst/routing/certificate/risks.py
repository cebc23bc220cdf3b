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

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import MAX_LATE_SHARE, Guarantee
from smallfirst.routing.certificate.outcomes import CascadeOutcome
from smallfirst.stats.bounds import betting_p_value, betting_upper_bound, is_mean_below, trinomial_upper_bound
from smallfirst.stats.intervals import upper_bound, wilson

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


class Evidence(NamedTuple):
    """What n rows show about one limit of a guarantee."""

    value: float
    """As measured, in the guarantee's unit; of `latency` the share of late rows."""
    n: int
    limit: float
    bound: Callable[[float], float]
    """From a level to the upper bound on the value."""
    test: Callable[[float], bool] | None = None
    """Whether the limit is shown at a level, where that is found sooner than the bound."""

    def shows(self, level: float) -> bool:
        return self.n > 0 and (self.test(level) if self.test else self.bound(level) <= self.limit)


def mixture(losses: int, n: int, limit: float, own: int, foreign: tuple[int, int], share: float) -> Evidence:
    """Return the evidence on errors while a share `share` in (0, 1) of requests is foreign, each of which is wrong.

    `losses` of n accepted rows among `own` ones; `foreign`: accepted ones, and all. With accepted shares A of own and F
    of foreign requests and an error e of own accepted answers, accepted answers are wrong at ((1 - share) e A + share
    F) / ((1 - share) A + share F), which grows with e, F and the share and falls with A: exact binomial bounds on the
    three, which divide the level, bound it for every smaller share as well.
    """

    def mixed(error: float, accepted: float, accepted_foreign: float) -> float:
        kept, others = (1 - share) * accepted, share * accepted_foreign
        return (error * kept + others) / (kept + others) if kept + others else 1.0

    def bound(level: float) -> float:
        of_error, of_own, of_foreign = (1 - part * level for part in MIXTURE_LEVELS)
        least = 1 - upper_bound(own - n, own, confidence=of_own)
        most = upper_bound(*foreign, confidence=of_foreign)
        return mixed(upper_bound(losses, n, confidence=of_error), least, most)

    return Evidence(mixed(*(k / max(1, m) for k, m in ((losses, n), (n, own), foreign))), n, limit, bound)


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


def _share(losses: int, n: int, limit: float, samples: Sequence[tuple[int, int]] = ()) -> Evidence:
    """Return the evidence on a share of rows; `samples` share the level, each losses and rows of a risk that adds."""
    parts = ((losses, n), *samples)

    def bound(level: float) -> float:
        return min(1.0, sum(upper_bound(*part, confidence=1 - level / len(parts)) for part in parts))

    return Evidence(losses / max(1, n), n, limit, bound)


def _error(outcome: CascadeOutcome, limit: float) -> Evidence:
    losses, n, foreign = int((outcome.accepted & ~outcome.right).sum()), outcome.n_accepted, outcome.data.foreign
    if foreign is None or not foreign.max_share:
        return _share(losses, n, limit)
    counts = (outcome.n_foreign_accepted, foreign.confidence.shape[1])
    return mixture(losses, n, limit, outcome.data.n, counts, foreign.max_share)


def _accuracy_loss(outcome: CascadeOutcome, limit: float) -> Evidence:
    both = outcome.data.paired
    large, routed = outcome.data.large_right[both], outcome.right[both]
    losses, gains, n = int((large & ~routed).sum()), int((routed & ~large).sum()), int(both.sum())
    return Evidence(
        (losses - gains) / max(1, n),
        n,
        limit,
        bound=lambda level: trinomial_upper_bound(losses, gains, n, confidence=1 - level),
        test=lambda level: is_mean_below(limit, losses, gains, n, level=level),
    )


def _cost(outcome: CascadeOutcome, limit: float) -> Evidence:
    data, most = outcome.data, max(outcome.max_cost_usd, 1e-12)
    large = data.cost_usd[-1]
    more = np.where(~outcome.accepted & ~data.asked, large[data.asked].max(initial=0.0) - large, 0.0)
    usd = outcome.select(data.cumulative_cost_usd) + more
    if not data.large_known and not outcome.all_accepted:
        usd = np.zeros(0)
    return Evidence(
        1000 * float(usd.mean()) if usd.size else 0.0,
        usd.size,
        limit,
        bound=lambda level: 1000 * betting_upper_bound(usd, confidence=1 - level, high=most),
        test=lambda level: betting_p_value(usd, limit / 1000, high=most) <= level,
    )


def _latency(outcome: CascadeOutcome, limit: float) -> Evidence:
    late = outcome.select(outcome.data.cumulative_latency_ms) > limit
    late |= ~outcome.accepted & ~outcome.data.asked
    return _share(int(late.sum()), outcome.data.n, MAX_LATE_SHARE, outcome.data.probes)


def _escalation(outcome: CascadeOutcome, limit: float) -> Evidence:
    return _share(outcome.data.n - outcome.n_accepted, outcome.data.n, limit)


_RISKS: dict[str, Callable[[CascadeOutcome, float], Evidence]] = {
    "error": _error,
    "accuracy_loss": _accuracy_loss,
    "cost": _cost,
    "latency": _latency,
    "escalation": _escalation,
}
