"""Monitor one task's guarantee after go-live: a state machine fed with requests and audits, without any I/O.

`live`, `drift`: the small model answers what the certificate accepts; `fallback`, `shadow`: the large model answers and
the small one runs beside it. Audits that break the guarantee lead to fallback, audits that show it again back to live.
A broken limit on the share of foreign requests, which the large model could not mend, raises an alarm and is no longer
guaranteed. Errors where none are limited raise a hint, which changes nothing.

A false guarantee alarm of any of the quantities watched, an unjustified recovery after each alarm, and a drift alarm
while requests are exchangeable have probability at most 1 - confidence each. Audits by a large model bound the
disagreement with it, not the error; answers must be drawn for audits with the chances of `plan_audit`. Equal calls give
equal states, so a monitor is restored by feeding it the recorded audits and drifts again, and several processes that
feed theirs alike agree; tests of requests start anew, and are each process's own. Processes share the chance of a false
alarm of such a test: with n of them each needs n times the evidence. `sums` may be shared as well: what is spent of the
reserve of audits, and what else is counted beside the tests.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, Self, cast, get_args

import pydantic

from smallfirst.models.protocol import Completion
from smallfirst.records import Record
from smallfirst.routing.budget import SharedSums
from smallfirst.routing.monitoring.audit_plan import MAX_WEIGHT, UNIFORM, AuditAllocation, AuditBudget, AuditDraw
from smallfirst.routing.monitoring.drift import DriftDetector, DriftReading, Statistic
from smallfirst.routing.monitoring.quantities import Quantity, Watch
from smallfirst.stats.intervals import Estimate
from smallfirst.stats.sequential import RecoveryTest, weighted_interval

State = Literal["live", "shadow", "drift", "fallback"]
OnRequests = Literal["foreign"]
"""Limits of a guarantee that every request tests."""
Cause = Literal["guarantee", "recovery", "live_error"] | Statistic | OnRequests
"""What led to a change: audits that break the guarantee, audits that show it again, drift of a statistic, a limit that
requests show broken; or a hint, `live_error`: more errors than on the calibration rows, where none are limited."""
_N_RECENT = 200
"""Audits that a recovery describes."""


class MonitorSettings(Record):
    """How closely a task is monitored after go-live, and what an alarm does."""

    audit_share: float = pydantic.Field(default=0.02, gt=0, le=1)
    """Share of accepted answers that is audited on average, in (0, 1]. The time to an alarm is in inverse proportion to
    it."""
    audit_by_uncertainty: bool = True
    """Whether the chance of an audit grows with the errors that calibration rows have at the answer's confidence, being
    at least half of the mean; or is the same for all."""
    audit_reserve: int = pydantic.Field(default=200, ge=0)
    """Audits beyond `audit_share` that may be made while recent audits look bad, at five times the share; a tenth of
    the share is saved to refill it. 0: the share stays the same."""
    audit_share_on_drift: float = pydantic.Field(default=0.1, gt=0, le=1)
    """Share that is audited after a drift alarm; at least `audit_share`."""
    audit_share_in_fallback: float = pydantic.Field(default=0.1, gt=0, le=1)
    """Share of requests that the small model answers beside the large one during a fallback."""
    confidence: float = pydantic.Field(default=0.95, gt=0.5, lt=1)
    """1 - the chance of a false guarantee alarm over the whole life."""
    drift_confidence: float = pydantic.Field(default=0.95, gt=0.5, lt=1)
    """1 - the chance of any false drift alarm over the whole life."""
    on_drift: Literal["audit", "fallback"] = "audit"
    """What a drift alarm does: more audits, or the large model at once."""
    recover: bool = True
    """Whether audits that show the guarantee end a drift and a fallback; if not, only a new certificate does."""

    @pydantic.model_validator(mode="after")
    def _audits_no_less_on_drift(self) -> Self:
        if self.audit_share_on_drift < self.audit_share:
            raise ValueError(
                f"audit_share_on_drift ({self.audit_share_on_drift}) is below audit_share ({self.audit_share}): "
                "after a drift alarm at least as many answers must be audited"
            )
        return self


class StateChange(Record):
    """One change of a task's state, or an alarm that left it as it was."""

    at_request: int
    """Number of requests until then."""
    before: State
    after: State
    """The state from then on; equal to `before` if an alarm follows an earlier one."""
    cause: Cause
    why: str
    """The cause as one sentence with figures."""
    values: dict[str, float]
    """The figures: `evidence`, `alarm_at` and `limit` of the test that led to it; `errors`, `audits`, `low`, `high` of
    the live error until then."""


class Monitor:
    """The state of one task under the limits of `quantities`; raise ValueError for a limit outside (0, 1).

    References are what the small model gave on all calibration rows; a statistic without one is not watched.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        quantities: Sequence[Quantity],
        reference_confidence: Sequence[float],
        reference_ood_score: Sequence[float] = (),
        reference_labels: Sequence[str] = (),
        allocation: AuditAllocation = UNIFORM,
        shadow: bool = False,
    ) -> None:
        self.settings = settings
        self._allocation = allocation if settings.audit_by_uncertainty else UNIFORM
        self.sums = SharedSums()
        self._budget = AuditBudget(settings.audit_share, settings.audit_reserve, self.sums)
        self.state: State = "shadow" if shadow else "live"
        self.requests = 0
        self.moment = datetime.min.replace(tzinfo=UTC)
        """Time of what is recorded next: a state that it leads to begins then."""
        self.processes = 1
        """Processes that watch such requests, which share the chance of a false alarm by them."""
        self.told_of_drift = False
        """Whether a drift that `observe` finds waits for `adopt`, instead of changing the state at once."""
        self.alarms: tuple[StateChange, ...] = ()
        self.hints: tuple[StateChange, ...] = ()
        rate = (1 - settings.confidence) / max(1, len(quantities))
        self.watches = tuple(Watch(quantity, rate) for quantity in quantities)
        self._audited = [watch for watch in self.watches if watch.quantity.loss is None]
        self.audits_all = any(watch.quantity.by_gate for watch in self._audited)
        """Whether answers are audited that no certificate covers."""
        self._since_live = self._no_audits(self.state)
        self._enter(self.state)
        references: dict[Statistic, Sequence[float | str]] = {
            "confidence": reference_confidence,
            "ood_score": reference_ood_score,
            "label": reference_labels,
        }
        watched = [(name, reference) for name, reference in references.items() if len(reference)]
        error = (1 - settings.drift_confidence) / max(1, len(watched))
        self._detectors = [DriftDetector(name, reference, error) for name, reference in watched]

    @property
    def drift(self) -> tuple[DriftReading, ...]:
        """How far each statistic of the requests is from an alarm."""
        return tuple(detector.reading for detector in self._detectors)

    @property
    def audit_share(self) -> float:
        """Mean chance that the next accepted answer is audited; in fallback and shadow, that the next request is."""
        if self.state == "live":
            return self._budget.rate(max([watch.test.suspicion for watch in self._audited], default=0.0))
        if self.state == "shadow":
            return 1.0
        of = self.settings
        return of.audit_share_on_drift if self.state == "drift" else of.audit_share_in_fallback

    def plan_audit(self, confidence: float | None) -> AuditDraw:
        """Return the chance with which the next answer is to be audited, and count it as given.

        `confidence` is the last stage's for an answer that it gave and the certificate accepts; None: the mean chance.
        """
        rate = self.audit_share
        if self.state not in ("live", "drift"):
            return UNIFORM.draw(rate, None)
        drawn = (UNIFORM if self._budget.spent else self._allocation).draw(rate, confidence)
        if self.state == "live":
            self._budget.pay(drawn.propensity)
        return drawn

    @property
    def live_error(self) -> Estimate:
        """Share of audited answers found wrong since the answering model last changed; valid at every moment.

        Of those that the certificate covers, if one promises anything that audits test; else of all.
        """
        return self._since_live[not self._promises].interval(self.settings.confidence)

    def mean(self, watch: Watch) -> Estimate:
        """Return the mean so far of what is watched, in its unit; valid at every moment."""
        if watch.quantity.loss is not None:
            return watch.interval(self.settings.confidence)
        return self._since_live[watch.quantity.by_gate].interval(self.settings.confidence)

    @property
    def broken(self) -> tuple[Quantity, ...]:
        """Promised limits that do not hold; those that audits test only during a fallback."""
        return tuple(watch.quantity for watch in self.watches if watch.exceeded and watch.quantity.promised)

    def observe(
        self, confidence: float | None, ood_score: float | None = None, label: str | None = None
    ) -> tuple[StateChange, ...]:
        """Add a request that the small model answered, accepted or not; return the changes. None: not known."""
        self.requests += 1
        if self.state == "shadow":
            return ()
        values = {"confidence": confidence, "ood_score": ood_score, "label": label}
        return tuple(
            self._drifted(one) for one in self._detectors if one.observe(values[one.name], processes=self.processes)
        )

    def record_answer(self, answer: Completion) -> tuple[StateChange, ...]:
        """Add an answer to a request, whoever gave it; return the changes."""
        if self.state not in ("live", "drift"):
            return ()
        found = []
        for watch in self.watches:
            if watch.quantity.loss is None:
                continue
            watch.processes = self.processes
            if watch.add(watch.quantity.loss(answer)):
                mean = watch.interval(self.settings.confidence)
                measured = f"{mean.value:.3g} over {mean.n} requests"
                why = f'the limit "{watch.quantity.words}" does not hold: {measured}; it is no longer guaranteed'
                found.append(self._exceeded(watch, cast(OnRequests, watch.quantity.name), why, self.state))
        return tuple(found)

    def record_audit(
        self, wrong: bool, *, weight: float = 1.0, answered_at: datetime | None = None, certified: bool = True
    ) -> tuple[StateChange, ...]:
        """Add one audit of a small answer; return the changes.

        `weight` is that of `plan_audit`, at most MAX_WEIGHT. An answer from before an alarm is not counted after it:
        `answered_at` tells (None: it counts). `certified`: the certificate accepts it, so its limits are tested too,
        beside the gate's.
        """
        if weight != 1 and self.state not in ("live", "drift"):
            return ()  # given before: drafts beside the large model's answers are drawn alike
        pools = (False, True) if certified else (True,)
        counts = [self._since_live[of_all].add(wrong, weight, answered_at) for of_all in pools]
        if any([self._since_alarm[of_all].add(wrong, weight, answered_at) for of_all in pools]):
            for watch, recovery in zip(self._audited, self._recoveries, strict=True):
                if watch.quantity.by_gate in pools:
                    recovery.update(wrong, weight)
        if self.state in ("live", "drift") and any(counts):
            found = [watch for watch in self._audited if watch.quantity.by_gate in pools and watch.add(wrong, weight)]
            if changes := tuple(self._too_many_wrong(watch) for watch in found[:1]):
                return changes
        recovered = bool(self._recoveries) and all(recovery.rejected for recovery in self._recoveries)
        if self.state in ("drift", "fallback") and self.settings.recover and recovered:
            return (self._recovered(),)
        return ()

    def resume(self, state: State) -> None:
        if state != self.state:
            self._enter(state)

    def adopt(self, cause: Statistic, why: str) -> StateChange:
        """Enter the state that a drift leads to, whichever process found it, and return the change."""
        after: State = "fallback" if "fallback" in (self.state, self.settings.on_drift) else "drift"
        return self._change(after, cause, why, {})

    def resume_broken(self, causes: Collection[str]) -> None:
        """Take the limits of these names that requests test for broken: only a new certificate promises them again."""
        for watch in self.watches:
            watch.exceeded |= watch.quantity.loss is not None and watch.quantity.name in causes

    def _too_many_wrong(self, watch: Watch) -> StateChange:
        test, quantity = watch.test, watch.quantity
        wrong = f"{test.losses:.0f} of {test.n} audited answers were wrong"
        if self._since_live[quantity.by_gate].weighted:
            wrong += f", {100 * self.mean(watch).value:.3g} % of all by their weights"
        if not (quantity.promised or quantity.by_gate):
            why = f"{wrong}, more than {quantity.words}"
            return self._exceeded(watch, "live_error", f"hint, changes nothing: {why}", self.state)
        limit, what = f"{100 * quantity.limit:.3g} %", "gate's limit" if quantity.by_gate else "guarantee"
        why = f'the {what} "{quantity.words}" does not hold: {wrong}, at most {limit} may be'
        return self._exceeded(watch, "guarantee", why, "fallback")

    def _exceeded(self, watch: Watch, cause: Cause, why: str, after: State) -> StateChange:
        evidence = {"evidence": watch.test.e_value, "alarm_at": watch.alarm_at}
        then = "; the large model answers, where there is one" if after == "fallback" else ""
        shown = f"{why}, evidence {evidence['evidence']:.0f} to 1 (alarm at {evidence['alarm_at']:.0f}){then}"
        return self._change(after, cause, shown, {**evidence, "limit": watch.quantity.limit})

    def _drifted(self, detector: DriftDetector) -> StateChange:
        after: State = "fallback" if "fallback" in (self.state, self.settings.on_drift) else "drift"
        then = "the large model answers" if after == "fallback" else f"{self.settings.audit_share_on_drift:.0%} audited"
        enter = not self.told_of_drift
        return self._change(after, detector.name, f"{detector.why}; {then}", detector.evidence, enter=enter)

    def _recovered(self) -> StateChange:
        test, recent = min(self._recoveries, key=lambda recovery: recovery.e_value), self._since_alarm[True].recent
        evidence = {"evidence": test.e_value, "alarm_at": 1 / (1 - test.confidence)}
        limits = " and ".join(f"{100 * watch.quantity.limit:.3g} %" for watch in self._audited)
        why = (
            f"audits show the limit of {limits} again: {test.losses:.0f} of {test.n} since the last "
            f"alarm were wrong, {sum(recent)} of the last {len(recent)}; evidence {test.e_value:.0f} to 1 (asked for: "
            f"{evidence['alarm_at']:.0f})"
        )
        return self._change("live", "recovery", why, evidence)

    def _change(
        self, after: State, cause: Cause, why: str, evidence: Mapping[str, float], *, enter: bool = True
    ) -> StateChange:
        error = self.live_error
        values = {
            "errors": self._since_live[not self._promises].errors,
            "audits": error.n,
            "low": error.low,
            "high": error.high,
        }
        values |= evidence
        at, before = self.requests, self.state
        change = StateChange(at_request=at, before=before, after=after, cause=cause, why=why, values=values)
        if not enter:
            return change
        if cause == "live_error":
            self.hints += (change,)
        elif cause != "recovery":
            self.alarms += (change,)
        if cause not in ("live_error", *get_args(OnRequests)):
            self._enter(after)
        return change

    def _enter(self, state: State) -> None:
        """Set the state and restart the tests, and the live error too if another model answers from now on."""
        answered_small, answers_small = (each in ("live", "drift") for each in (self.state, state))
        if answered_small != answers_small:
            self._since_live = self._no_audits(state)
        for watch in self._audited:
            if answers_small and not answered_small and watch.exceeded:
                watch.restart()
        self._since_alarm = self._no_audits(state)
        limits = [watch.quantity.limit for watch in self._audited]
        most = MAX_WEIGHT if answers_small else 1.0
        self._recoveries = [RecoveryTest(limit, self.settings.confidence, max_weight=most) for limit in limits]
        self.state = state

    @property
    def _promises(self) -> bool:
        """True if audits test a limit of the certificate."""
        return any(not watch.quantity.by_gate for watch in self._audited)

    def _no_audits(self, state: State) -> dict[bool, _Audits]:
        most = MAX_WEIGHT if state in ("live", "drift") and self._allocation != UNIFORM else 1.0
        return {of_all: _Audits(self.moment, most) for of_all in (False, True)}


class _Audits:
    def __init__(self, since: datetime, max_weight: float) -> None:
        self.since, self.max_weight, self.errors = since, max_weight, 0
        self.counts: Counter[tuple[float, bool]] = Counter()
        """Audits by weight and whether the answer was wrong."""
        self.recent: deque[bool] = deque(maxlen=_N_RECENT)

    def add(self, wrong: bool, weight: float, answered_at: datetime | None) -> bool:
        counts = answered_at is None or answered_at >= self.since
        if counts:
            self.counts[round(weight, 9), wrong] += 1
            self.errors += wrong
            self.recent.append(wrong)
        return counts

    @property
    def weighted(self) -> bool:
        return any(weight != 1 for weight, _ in self.counts)

    def interval(self, confidence: float) -> Estimate:
        # An earlier setting may have given weights to audits that the ledger holds.
        most = MAX_WEIGHT if self.weighted else self.max_weight
        return weighted_interval(self.counts, confidence, max_weight=most)
