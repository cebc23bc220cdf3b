"""After go-live: audits of the small model's answers test what is promised about them. Pure, without any I/O.

In the state `live` the small model answers what the certificate accepts; in `fallback` and `shadow` the large one
answers and the small one runs beside it. Audits that break a limit lead to fallback, audits that show all limits again
back to live. A limit is on the mean of a loss in [0, 1], so the same betting test serves all of them:

| quantity | loss | of | limit |
|---|---|---|---|
| error | the judge calls the answer wrong | audits | `Certificate.audit_limit_for` |
| accuracy_loss | the same | audits | what the measured errors of the large model leave room for |
| accuracy | the same | audits of all small answers | 1 - the gate's accuracy, `AuditedAccuracy` |

A false alarm of any of them, and an unjustified recovery after each alarm, have probability at most 1 - confidence
each. Audits by a large model bound the disagreement with it, not the error. Equal audits give equal states, so a
monitor is restored by feeding it the recorded ones, and processes that feed theirs alike agree.

Each accepted answer has a known chance to be audited, at least 1 / MAX_WEIGHT of the mean one, and its audit the
inverse weight, so tests and intervals stay valid whatever was chosen here (`smallfirst.base.stats.sequential`).
Uncertain answers have the greater chance, which makes an alarm come sooner; so has every answer while the last
audits speak against a limit. How often is audited follows from earlier audits alone, so no bound changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import pydantic

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate
from smallfirst.base.stats.sequential import MAX_WEIGHT, GuaranteeTest, RecoveryTest, weighted_interval
from smallfirst.measuring.outcome import AuditedAccuracy
from smallfirst.routing.certificate.certificate import Certificate, ThresholdPoint, describe_limit

Judge = Literal["large", "person"]
State = Literal["live", "shadow", "fallback"]
Cause = Literal["guarantee", "recovery"]
MIN_FALSE_ALARM_RATE = 1e-12
"""Where the quartering of the false-alarm rate ends, after some twenty alarms."""
SUSPICION = 3.0
"""Evidence of the last audits against a limit, to 1, above which more are drawn. Chosen by simulation
(`benchmarks.routing.monitors`)."""
_N_RECENT = 200
"""Audits that a recovery describes."""


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
    """Return chances by which the surer half of accepted calibration rows has half of the mean one, the others more.

    `curve` is that of a certificate. Where the surer half is wrong as often as the rest, all chances are equal.
    """
    points = sorted((point for point in curve if point.threshold >= threshold), key=lambda point: point.n_accepted)
    n = points[-1].n_accepted if points else 0
    half = next((point for point in points if 2 * point.n_accepted >= n), None)
    if half is None or half.n_accepted in (0, n) or half.n_errors * n >= points[-1].n_errors * half.n_accepted:
        return UNIFORM
    surer, least = half.n_accepted / n, 1 / MAX_WEIGHT
    return AuditAllocation((half.threshold,), ((1 - surer * least) / (1 - surer), least))


class Quantity(NamedTuple):
    """The mean of a loss, and its limit."""

    name: str
    limit: float
    """Largest mean of the loss, in (0, 1)."""
    words: str
    by_gate: bool = False
    """True if it is the gate's: audits of all small answers count, and no promise about single ones rests on it."""


def watched_quantities(
    certificate: Certificate, judge: Judge, audited: AuditedAccuracy | None = None
) -> tuple[Quantity, ...]:
    """Return what is watched where `judge` judges audits: each promised limit that can be, and the gate's accuracy.

    A certificate that was not issued promises nothing; `audited` is what a gate asks for that let a candidate answer
    every request.
    """
    limits = certificate.guarantee.limits.items() if certificate.issued else ()
    tested = [(risk, certificate.audit_limit_for(risk, judge), describe_limit(risk, limit)) for risk, limit in limits]
    found = [Quantity(risk, most, words) for risk, most, words in tested if most is not None]
    gate = audited.limits.get(judge) if audited else None
    return (*found, *([Quantity("accuracy", gate, audited.words, by_gate=True)] if audited and gate else []))


def not_watched(certificate: Certificate, judge: Judge) -> tuple[str, ...]:
    """Return the promised limits, in words, that nothing after go-live can test."""
    watched = {quantity.name for quantity in watched_quantities(certificate, judge)}
    limits = certificate.guarantee.limits.items() if certificate.issued else ()
    return tuple(describe_limit(risk, limit) for risk, limit in limits if risk not in watched)


class MonitorSettings(Record):
    """How closely a task is monitored after go-live."""

    audit_share: float = pydantic.Field(default=0.02, gt=0, le=1)
    """Share of accepted answers that is audited on average, in (0, 1]. The time to an alarm is in inverse proportion to
    it."""
    audit_share_on_suspicion: float = pydantic.Field(default=0.1, gt=0, le=1)
    """Share of them while the last audits speak against a limit by more than 3 to 1; `audit_share`, where that is
    more."""
    audit_share_in_fallback: float = pydantic.Field(default=0.1, gt=0, le=1)
    """Share of requests that the small model answers beside the large one during a fallback."""
    confidence: float = pydantic.Field(default=0.95, gt=0.5, lt=1)
    """1 - the chance of a false guarantee alarm over the whole life."""


class StateChange(NamedTuple):
    """One change of a task's state."""

    before: State
    after: State
    cause: Cause
    """Audits that break the guarantee, or that show it again."""
    why: str
    """The cause as one sentence with figures."""


class Watch:
    """One quantity under watch."""

    def __init__(self, quantity: Quantity, false_alarm_rate: float) -> None:
        self.quantity, self._rate, self._n_broken = quantity, false_alarm_rate, 0
        self.restart()

    def restart(self) -> None:
        """Start the next test with a quarter of the false-alarm rate of the one before; all together have the rate."""
        self.exceeded = False
        """True once the test has found more than the limit."""
        self._n_broken += 1
        rate = max(3 * self._rate / 4**self._n_broken, MIN_FALSE_ALARM_RATE)
        self.test = GuaranteeTest(self.quantity.limit, 1 - rate, max_weight=MAX_WEIGHT)

    def add(self, wrong: bool, weight: float) -> bool:
        """Add an audit; return True if the test finds that the limit does not hold."""
        self.test.update(wrong, weight)
        self.exceeded = self.test.rejected
        return self.exceeded


class Monitor:
    """The state of one task under the limits of `quantities`; raise ValueError for a limit outside (0, 1)."""

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        quantities: Sequence[Quantity],
        allocation: AuditAllocation = UNIFORM,
        shadow: bool = False,
    ) -> None:
        self.settings, self._allocation = settings, allocation
        self.alarms: tuple[StateChange, ...] = ()
        rate = (1 - settings.confidence) / max(1, len(quantities))
        self.watches = tuple(Watch(quantity, rate) for quantity in quantities)
        self.audits_all = any(quantity.by_gate for quantity in quantities)
        """Whether answers are audited that no certificate covers."""
        self._enter("shadow" if shadow else "live", datetime.min.replace(tzinfo=UTC))

    @property
    def audit_share(self) -> float:
        """Mean chance that the next accepted answer is audited; in fallback and shadow, that the next request is."""
        if self.state == "live":
            suspects = any(watch.test.recent > SUSPICION for watch in self.watches)
            return max(self.settings.audit_share, self.settings.audit_share_on_suspicion * suspects)
        return 1.0 if self.state == "shadow" else self.settings.audit_share_in_fallback

    def plan_audit(self, confidence: float | None) -> AuditDraw:
        """Return the chance with which the next answer is to be audited.

        `confidence` is the last stage's for an answer that it gave and the certificate accepts; None: the mean chance.
        """
        if self.state != "live":
            return UNIFORM.draw(self.audit_share, None)
        return self._allocation.draw(self.audit_share, confidence)

    @property
    def live_error(self) -> Estimate:
        """Share of audited answers found wrong since the answering model last changed; valid at every moment.

        Of those that the certificate covers, if one promises anything that audits test; else of all.
        """
        promises = any(not watch.quantity.by_gate for watch in self.watches)
        return self._audits[not promises].interval(self.settings.confidence)

    def mean(self, watch: Watch) -> Estimate:
        """Return the mean so far of what is watched; valid at every moment."""
        return self._audits[watch.quantity.by_gate].interval(self.settings.confidence)

    def record(
        self,
        wrong: bool,
        weight: float = 1.0,
        *,
        certified: bool = True,
        answered_at: datetime | None = None,
        at: datetime | None = None,
    ) -> StateChange | None:
        """Add one audit of a small answer, judged `at`; return the change that it leads to.

        `weight` is that of `plan_audit`, at most MAX_WEIGHT. An answer from before the last change is not counted after
        it: `answered_at` tells (None: it counts). `certified`: the certificate accepts it, so its limits are tested
        too, beside the gate's.
        """
        if answered_at is not None and answered_at < self._since:
            return None
        if weight != 1 and self.state != "live":
            return None  # given before: drafts beside the large model's answers are drawn alike
        pools = (False, True) if certified else (True,)
        for of_all in pools:
            self._audits[of_all].add(wrong, weight)
        tested = [(i, watch) for i, watch in enumerate(self.watches) if watch.quantity.by_gate in pools]
        if self.state == "live":
            if broken := [watch for _, watch in tested if watch.add(wrong, weight)]:
                return self._fell_back(broken[0], at)
        elif self.state == "fallback" and self._recoveries:
            for i, _ in tested:
                self._recoveries[i].update(wrong, weight)
            if all(recovery.rejected for recovery in self._recoveries):
                return self._recovered(at)
        return None

    def _fell_back(self, watch: Watch, at: datetime | None) -> StateChange:
        test, quantity = watch.test, watch.quantity
        wrong = f"{test.losses:.0f} of {test.n} audited answers were wrong"
        if self._audits[quantity.by_gate].weighted:
            wrong += f", {100 * self.mean(watch).value:.3g} % of all by their weights"
        what, limit = "gate's limit" if quantity.by_gate else "guarantee", f"{100 * quantity.limit:.3g} %"
        evidence = f"evidence {test.e_value:.0f} to 1 (alarm at {1 / (1 - test.confidence):.0f})"
        why = (
            f'the {what} "{quantity.words}" does not hold: {wrong}, at most {limit} may be, {evidence}; '
            "the large model answers, where there is one"
        )
        change = StateChange(self.state, "fallback", "guarantee", why)
        self.alarms += (change,)
        self._enter("fallback", at)
        return change

    def _recovered(self, at: datetime | None) -> StateChange:
        test, recent = min(self._recoveries, key=lambda recovery: recovery.e_value), self._audits[True].recent
        limits = " and ".join(f"{100 * watch.quantity.limit:.3g} %" for watch in self.watches)
        why = (
            f"audits show the limit of {limits} again: {test.losses:.0f} of {test.n} since the last alarm were wrong, "
            f"{sum(recent)} of the last {len(recent)}; evidence {test.e_value:.0f} to 1 (asked for: "
            f"{1 / (1 - test.confidence):.0f})"
        )
        change = StateChange(self.state, "live", "recovery", why)
        self._enter("live", at)
        return change

    def _enter(self, state: State, at: datetime | None) -> None:
        """Begin a state, with the live error and the tests that it needs."""
        self.state, self._since = state, at or datetime.now(UTC)
        most = MAX_WEIGHT if state == "live" and self._allocation != UNIFORM else 1.0
        self._audits = {of_all: _Audits(most) for of_all in (False, True)}
        for watch in self.watches:
            if state == "live" and watch.exceeded:
                watch.restart()
        confidence = self.settings.confidence
        self._recoveries = [RecoveryTest(watch.quantity.limit, confidence) for watch in self.watches]


class _Audits:
    def __init__(self, max_weight: float) -> None:
        self.max_weight = max_weight
        self.counts: Counter[tuple[float, bool]] = Counter()
        """Audits by weight and whether the answer was wrong."""
        self.recent: deque[bool] = deque(maxlen=_N_RECENT)

    def add(self, wrong: bool, weight: float) -> None:
        self.counts[round(weight, 9), wrong] += 1
        self.recent.append(wrong)

    @property
    def weighted(self) -> bool:
        return any(weight != 1 for weight, _ in self.counts)

    def interval(self, confidence: float) -> Estimate:
        # An earlier certificate's curve may have given weights to audits that the ledger holds.
        most = MAX_WEIGHT if self.weighted else self.max_weight
        return weighted_interval(self.counts, confidence, max_weight=most)
