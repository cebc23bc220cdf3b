"""Monitor one task's guarantee after go-live: a state machine fed with requests and audits, without any I/O.

`live`, `drift`: the small model answers what the certificate accepts; `fallback`, `shadow`: the large model answers and
the small one runs beside it. A broken guarantee leads to fallback; audits that show it again lead back to live.

A false guarantee alarm, an unjustified recovery after each alarm, and a drift alarm while requests are exchangeable
have probability at most 1 - confidence each, over the whole life. Audits by a large model bound the disagreement with
it, not the error; audited answers must be a random sample. Equal calls give equal states, so a monitor is restored by
feeding it the recorded requests and audits again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, Self

import pydantic

from smallfirst.records import Record
from smallfirst.routing.monitoring.drift import MIN_FALSE_ALARM_RATE, DriftDetector, Statistic
from smallfirst.stats.intervals import Estimate
from smallfirst.stats.sequential import GuaranteeTest, RecoveryTest, anytime_valid_interval

State = Literal["live", "shadow", "drift", "fallback"]
Cause = Literal["guarantee", "recovery"] | Statistic
"""What led to a change: a broken guarantee, audits that show it again, or drift of a statistic."""
_N_RECENT = 200
"""Audits that a recovery describes."""


class MonitorSettings(Record):
    """How closely a task is monitored after go-live, and what an alarm does."""

    audit_share: float = pydantic.Field(default=0.02, gt=0, le=1)
    """Share of accepted answers that is audited, in (0, 1]. The time to an alarm is in inverse proportion to it."""
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
    """The state until then."""
    after: State
    """The state from then on; equal to `before` if an alarm follows an earlier one."""
    cause: Cause
    """What led to it."""
    why: str
    """The cause as one sentence with figures."""
    values: dict[str, float]
    """The figures: `evidence` and `alarm_at` of the test that led to it; `errors`, `audits`, `low`, `high` of the live
    error until then; `limit`."""


class Monitor:
    """The state of one task. `limit` is the error that the certificate guarantees, in (0, 1), else ValueError.

    References are what the small model gave on all calibration rows; a statistic without one is not watched.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        limit: float,
        reference_confidence: Sequence[float],
        reference_ood_score: Sequence[float] = (),
        reference_labels: Sequence[str] = (),
        shadow: bool = False,
    ) -> None:
        self.settings, self.limit = settings, limit
        self.state: State = "shadow" if shadow else "live"
        self.requests = 0
        self.alarms: tuple[StateChange, ...] = ()
        self._n_broken = 0
        self._guarantee = self._new_guarantee_test()
        self._since_live = _Audits(0)
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
    def audit_share(self) -> float:
        """Chance that the next accepted answer is audited; in fallback and shadow, that the next request is."""
        of = self.settings
        shares = of.audit_share, of.audit_share_on_drift, of.audit_share_in_fallback, 1.0
        return shares[("live", "drift", "fallback", "shadow").index(self.state)]

    @property
    def live_error(self) -> Estimate:
        """Share of audited answers found wrong since the answering model last changed; valid at every moment."""
        return self._since_live.interval(self.settings.confidence)

    def observe(
        self, confidence: float | None, ood_score: float | None = None, label: str | None = None
    ) -> tuple[StateChange, ...]:
        """Add a request that the small model answered, accepted or not; return the changes. None: not known."""
        self.requests += 1
        if self.state == "shadow":
            return ()
        values = {"confidence": confidence, "ood_score": ood_score, "label": label}
        return tuple(self._drifted(one) for one in self._detectors if one.observe(values[one.name]))

    def record_audit(self, wrong: bool, *, drawn_at: int | None = None) -> tuple[StateChange, ...]:
        """Add one audit of an answer that the certificate accepts; return the changes.

        `drawn_at` is what `requests` was when the answer was given: an answer from before an alarm is not counted after
        it.
        """
        counts = self._since_live.add(wrong, drawn_at)
        if self._since_alarm.add(wrong, drawn_at):
            self._recovery.update(wrong)
        if self.state in ("live", "drift") and counts:
            self._guarantee.update(wrong)
            if self._guarantee.rejected:
                return (self._guarantee_broken(),)
        if self.state in ("drift", "fallback") and self.settings.recover and self._recovery.rejected:
            return (self._recovered(),)
        return ()

    def resume(self, state: State) -> None:
        if state != self.state:
            self._enter(state)

    def _guarantee_broken(self) -> StateChange:
        test = self._guarantee
        alarm_at = 1 / (1 - test.confidence)
        why = (
            f"the guarantee of at most {100 * self.limit:g} % wrong does not hold: {test.errors} of {test.n} audited "
            f"answers were wrong, evidence {test.e_value:.0f} to 1 (alarm at {alarm_at:.0f}); the large model answers"
        )
        self._n_broken += 1
        return self._change("fallback", "guarantee", why, {"evidence": test.e_value, "alarm_at": alarm_at})

    def _drifted(self, detector: DriftDetector) -> StateChange:
        after: State = "fallback" if "fallback" in (self.state, self.settings.on_drift) else "drift"
        then = "the large model answers" if after == "fallback" else f"{self.settings.audit_share_on_drift:.0%} audited"
        return self._change(after, detector.name, f"{detector.why}; {then}", detector.evidence)

    def _recovered(self) -> StateChange:
        test, recent = self._recovery, self._since_alarm.recent
        evidence = {"evidence": test.e_value, "alarm_at": 1 / (1 - test.confidence)}
        why = (
            f"audits show the guarantee of {100 * self.limit:g} % again: {test.errors} of {test.n} since the last "
            f"alarm were wrong, {sum(recent)} of the last {len(recent)}; evidence {test.e_value:.0f} to 1 (asked for: "
            f"{evidence['alarm_at']:.0f})"
        )
        return self._change("live", "recovery", why, evidence)

    def _new_guarantee_test(self) -> GuaranteeTest:
        """Start the next test with half the false-alarm rate of the one before, so that all together stay bounded."""
        rate = (1 - self.settings.confidence) / 2 ** (self._n_broken + 1)
        return GuaranteeTest(self.limit, 1 - max(rate, MIN_FALSE_ALARM_RATE))

    def _change(self, after: State, cause: Cause, why: str, evidence: dict[str, float]) -> StateChange:
        error = self.live_error
        values = {"errors": self._since_live.errors, "audits": error.n, "low": error.low, "high": error.high}
        values |= {**evidence, "limit": self.limit}
        at, before = self.requests, self.state
        change = StateChange(at_request=at, before=before, after=after, cause=cause, why=why, values=values)
        if cause != "recovery":
            self.alarms += (change,)
        self._enter(after)
        return change

    def _enter(self, state: State) -> None:
        """Set the state and restart the tests, and the live error too if another model answers from now on."""
        answered_small, answers_small = (each in ("live", "drift") for each in (self.state, state))
        if answered_small != answers_small:
            self._since_live = _Audits(self.requests)
        if answers_small and self._guarantee.rejected:
            self._guarantee = self._new_guarantee_test()
        self._since_alarm = _Audits(self.requests)
        self._recovery = RecoveryTest(self.limit, self.settings.confidence)
        self.state = state


class _Audits:
    def __init__(self, since: int) -> None:
        self.since, self.n, self.errors = since, 0, 0
        self.recent: deque[bool] = deque(maxlen=_N_RECENT)

    def add(self, wrong: bool, drawn_at: int | None) -> bool:
        counts = drawn_at is None or drawn_at > self.since
        if counts:
            self.n += 1
            self.errors += wrong
            self.recent.append(wrong)
        return counts

    def interval(self, confidence: float) -> Estimate:
        return anytime_valid_interval(self.errors, self.n, confidence)
