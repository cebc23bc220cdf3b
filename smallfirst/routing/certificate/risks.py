"""The risks that a guarantee can limit, each as evidence from one outcome of the cascade.

| risk | loss of a row | rows | test |
|---|---|---|---|
| error | the accepted answer is wrong | accepted rows | exact binomial |
| error, with foreign requests | the same, or the request is foreign | accepted, own and foreign rows | three of them |
| accuracy_loss | large right minus routed right: -1, 0 or 1 | rows with gold and large's answer | exact trinomial |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import CascadeOutcome
from smallfirst.stats.bounds import is_mean_below, trinomial_upper_bound
from smallfirst.stats.intervals import upper_bound, wilson

MIXTURE_LEVELS = (0.5, 0.1, 0.4)
"""Parts of the level for the error of own accepted rows, the share of own and the share of foreign rows accepted. The
second is loose in effect: all own rows measure it."""


class RiskResult(Record):
    """What the chosen thresholds showed about one limit of the guarantee."""

    risk: str
    """`error` or `accuracy_loss`."""
    limit: float
    value: float
    """The measured value."""
    bound: float
    """Upper bound on it, at the level of this limit."""
    n: int


class Evidence(NamedTuple):
    """What n rows show about one limit of a guarantee."""

    value: float
    """As measured."""
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
    return _error(outcome, limit) if risk == "error" else _accuracy_loss(outcome, limit)


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
    losses, n, foreign = int((outcome.accepted & ~outcome.right).sum()), outcome.n_accepted, outcome.data.foreign
    if foreign is None or not foreign.max_share:
        return Evidence(losses / max(1, n), n, limit, lambda level: upper_bound(losses, n, confidence=1 - level))
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
