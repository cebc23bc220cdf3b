"""The quantities that a guarantee limits, as they are watched after go-live.

Each is the mean of a loss in [0, 1] with a limit, so the same betting test serves all of them:

| quantity | loss | of | limit |
|---|---|---|---|
| error | the judge calls the answer wrong | audits | `Certificate.audit_limit_for` |
| accuracy_loss | the same | audits | what the measured errors of the large model leave room for |
| accuracy | the same | audits of all small answers | 1 - the gate's accuracy, `AuditedAccuracy` |
| foreign | the domain check finds it unlike the task's | all requests | `Certificate.max_outside` |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from smallfirst.gate.outcome import AuditedAccuracy
from smallfirst.models.protocol import Completion
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.certificate.guarantee import describe_limit
from smallfirst.routing.monitoring.audit_plan import MAX_WEIGHT
from smallfirst.routing.monitoring.drift import MIN_FALSE_ALARM_RATE
from smallfirst.stats.intervals import Estimate
from smallfirst.stats.sequential import GuaranteeTest, anytime_valid_interval

Judge = Literal["large", "person"]


class Quantity(NamedTuple):
    """The mean of a loss, and its limit."""

    name: str
    limit: float
    """Largest mean of the loss, in (0, 1)."""
    words: str
    loss: Callable[[Completion], float] | None = None
    """Loss of a request in [0, 1]; None: the loss is an audit's verdict."""
    promised: bool = True
    """False if the guarantee does not limit it: unless it is the gate's, it raises a hint and changes nothing."""
    by_gate: bool = False
    """True if it is the gate's: audits of all small answers count, and no promise about single ones rests on it."""


class Watch:
    """One quantity under watch."""

    def __init__(self, quantity: Quantity, false_alarm_rate: float) -> None:
        self.quantity = quantity
        self.processes = 1
        """Processes that test a limit of requests, each on its own: each needs as many times the evidence."""
        self.exceeded = False
        """True once the test has found more than the limit."""
        self._rate, self._n_broken = false_alarm_rate, 0
        self.restart()

    def restart(self) -> None:
        """Start the next test with a quarter of the false-alarm rate of the one before; all together have the rate."""
        self.exceeded = False
        self._n_broken += 1
        rate = max(3 * self._rate / 4**self._n_broken, MIN_FALSE_ALARM_RATE)
        most = MAX_WEIGHT if self.quantity.loss is None else 1.0
        self.test = GuaranteeTest(self.quantity.limit, 1 - rate, max_weight=most)

    @property
    def alarm_at(self) -> float:
        """Evidence from which on the limit counts as broken."""
        return self.processes / (1 - self.test.confidence)

    def add(self, loss: float, weight: float = 1.0) -> bool:
        """Add a loss; return True if the test finds by it, for the first time, that the limit does not hold."""
        self.test.update(loss, weight)
        found = self.test.e_value >= self.alarm_at and not self.exceeded
        self.exceeded |= found
        return found

    def interval(self, confidence: float) -> Estimate:
        """Return the mean, valid at every moment."""
        return anytime_valid_interval(self.test.losses, self.test.n, confidence)


def watched_quantities(
    certificate: Certificate, judge: Judge, audited: AuditedAccuracy | None = None
) -> tuple[Quantity, ...]:
    """Return what is watched where `judge` judges audits: each promised limit that can be, and the gate's accuracy.

    Where no limit rests on audits, more errors than the calibration rows allow for raise a hint. A certificate that was
    not issued promises nothing; `audited` is what a gate asks for that let a candidate answer every request.
    """
    limit = audited.limits.get(judge) if audited else None
    by_gate = [Quantity("accuracy", limit, audited.words, promised=False, by_gate=True)] if audited and limit else []
    return (*(_of_certificate(certificate, judge) if certificate.issued else ()), *by_gate)


def _of_certificate(certificate: Certificate, judge: Judge) -> list[Quantity]:
    found = []
    for risk, limit in certificate.guarantee.limits.items():
        if (most := certificate.audit_limit_for(risk, judge)) is not None:
            found.append(Quantity(risk, most, describe_limit(risk, limit)))
    if (most := certificate.max_outside) is not None:
        share = certificate.guarantee.max_foreign_share
        words = f"at most {100 * share:g} % of requests foreign (at most {100 * most:.3g} % look so)"
        found += [Quantity("foreign", most, words, is_outside)] if most < 1 else []
    usual = certificate.audit_limit_for("error", judge)
    if usual is not None and not any(quantity.loss is None for quantity in found):
        words = f"{100 * usual:.3g} % of audited answers wrong, the bound of the calibration rows (not guaranteed)"
        found.append(Quantity("error", usual, words, promised=False))
    return found


def is_outside(answer: Completion) -> float:
    """Return 1 if the domain check found the request unlike the task's own, else 0."""
    steps = [s for s in answer.route.trail if s.stage == "domain"] if answer.route else []
    return float(any(s.score is not None and s.threshold is not None and s.score > s.threshold for s in steps))


def not_watched(certificate: Certificate, judge: Judge) -> tuple[str, ...]:
    """Return the promised limits, in words, that nothing after go-live can test."""
    watched = {quantity.name for quantity in watched_quantities(certificate, judge) if quantity.promised}
    limits = certificate.guarantee.limits.items() if certificate.issued else ()
    return tuple(describe_limit(risk, limit) for risk, limit in limits if risk not in watched)
