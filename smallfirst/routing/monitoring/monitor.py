"""Watches one task's promise after go-live: a state machine fed with requests and audits, without any I/O.

    shadow ──go_live()──► live ──traffic changed──► drift ──promise broken──► fallback
                           ▲ └─────────────promise broken────────────────────────┤
                           └────────────audits show the promise again◄───────────┘ (also from drift)

In `live` and `drift` the small model answers what the certificate keeps; in `fallback` and `shadow` the large model
answers and the small one runs beside. A random `audit_share` of what the small model keeps, or would keep, is judged:
by a person, or by the large model.

What the bounds mean. While each kept answer is wrong with probability at most `limit`, a promise alarm comes, over the
whole life and all recoveries together, with probability at most 1 - `confidence`. While requests come in no order from
where the calibration rows came from, a drift alarm of any kind comes with probability at most 1 - `drift_confidence`.
While each answer is in truth wrong with probability at least `limit`, a recovery that should not be comes with
probability at most 1 - `confidence` after each alarm. Each test may be read after every request;
`smallfirst.stats.sequential` says why.

What they do not mean. Audits judged by a large model bound the disagreement with that model, not the error. The bounds
are for a random sample of kept answers: feedback that users give when they like, audits that are done only when they
are easy, and answers that were looked at because something was odd must not be fed in. Drift is about the stream: that
traffic changed does not show that answers got worse, and an error that leaves confidences, doubts and labels alone is
seen by audits only. Traffic that differs by the hour is drift too. A certificate is itself wrong sometimes (5 % at
95 %); the alarm that follows is then right. An error close under the limit takes a very long time to show recovery.

A request costs some microseconds for each of three statistics, an audit as much. Equal calls give equal states, so
that a monitor is restored by feeding it the recorded requests and audits again; with the audits alone it is restored
but for the watch over drift, whose bound then begins anew.
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
Cause = Literal["promise", "shown", "go-live"] | Statistic
"""What led to a change: a broken promise, audits that show it again, somebody's decision, or a drift."""
_LATELY = 200
"""Audits that a recovery describes."""


class MonitorSettings(Record):
    """How closely a task is watched after go-live, and what an alarm does."""

    audit_share: float = pydantic.Field(default=0.02, gt=0, le=1)
    """Share of kept answers that is audited, in (0, 1]. What an alarm takes to come is in inverse proportion to it."""
    audit_share_on_drift: float = pydantic.Field(default=0.1, gt=0, le=1)
    """The same after a drift alarm; at least `audit_share`."""
    audit_share_in_fallback: float = pydantic.Field(default=0.1, gt=0, le=1)
    """Share of requests that the small model answers beside the large one during a fallback."""
    confidence: float = pydantic.Field(default=0.95, gt=0.5, lt=1)
    """Of the promise alarm: while the promise holds, 1 - this is the chance of a false alarm over the whole life."""
    drift_confidence: float = pydantic.Field(default=0.95, gt=0.5, lt=1)
    """The same of all drift alarms together, while traffic stays as it was."""
    on_drift: Literal["audit", "fallback"] = "audit"
    """What a drift alarm does: more audits, or the large model at once."""
    recover: bool = True
    """Whether audits that show the promise to hold end a drift and a fallback; if not, only a new certificate does."""

    @pydantic.model_validator(mode="after")
    def _drift_is_no_reason_to_look_away(self) -> Self:
        if self.audit_share_on_drift < self.audit_share:
            raise ValueError(
                f"audit_share_on_drift ({self.audit_share_on_drift}) is below audit_share ({self.audit_share}): "
                "after a drift alarm at least as many answers must be audited"
            )
        return self


class StateChange(Record):
    """One change of a task's state, or an alarm that left it as it was."""

    at_request: int
    """How many requests had been seen."""
    before: State
    """The state until then."""
    after: State
    """The state from then on; equal to `before` if an alarm comes on top of an earlier one."""
    cause: Cause
    """What led to it."""
    why: str
    """The same as one sentence with figures."""
    values: dict[str, float]
    """The figures: `evidence` and `alarm_at` of the test that led to it; `errors`, `audits`, `low`, `high` of the live
    error until then; `limit`."""


class Monitor:
    """The state of one task, from what it has seen. `limit` is the error that the certificate promises.

    The references are what the small model gave on the calibration rows, all of them and not only those kept:
    its confidences, the domain check's doubts, the labels it answered. A statistic without a reference is not watched.
    With `shadow` nothing is promised yet: audits only add to `live_error`, and watching begins with `go_live()`.
    Raises ValueError if `limit` is not in (0, 1).
    """

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        limit: float,
        reference_confidence: Sequence[float],
        reference_doubt: Sequence[float] = (),
        reference_labels: Sequence[str] = (),
        shadow: bool = False,
    ) -> None:
        self.settings, self.limit = settings, limit
        self.state: State = "shadow" if shadow else "live"
        self.requests = 0
        self.alarms: tuple[StateChange, ...] = ()
        self._broken = 0
        self._promise = self._new_promise()
        self._since_live = _Audits(0)
        self._enter(self.state)
        references: dict[Statistic, Sequence[float | str]]
        references = {"confidence": reference_confidence, "doubt": reference_doubt, "label": reference_labels}
        watched = [(name, reference) for name, reference in references.items() if len(reference)]
        error = (1 - settings.drift_confidence) / max(1, len(watched))
        self._watches = [DriftDetector(name, reference, error) for name, reference in watched]

    @property
    def audit_share(self) -> float:
        """The chance with which the next kept answer is to be audited; of the next request in fallback and shadow.

        It depends on the past only, so that audited answers are a random sample of those kept.
        """
        of = self.settings
        shares = of.audit_share, of.audit_share_on_drift, of.audit_share_in_fallback, 1.0
        return shares[("live", "drift", "fallback", "shadow").index(self.state)]

    @property
    def live_error(self) -> Estimate:
        """Share of audited answers found wrong since go-live, the last fallback or the last return from one.

        The interval holds at every moment at once, as long as the error stays what it is.
        """
        return self._since_live.interval(self.settings.confidence)

    def observe(
        self, confidence: float | None, doubt: float | None = None, label: str | None = None
    ) -> tuple[StateChange, ...]:
        """Take in a request that the small model answered, kept or not; what came of it. None: not known."""
        self.requests += 1
        if self.state == "shadow":
            return ()
        seen = {"confidence": confidence, "doubt": doubt, "label": label}
        return tuple(self._drifted(watch) for watch in self._watches if watch.observe(seen[watch.name]))

    def audited(self, wrong: bool, *, drawn_at: int | None = None) -> tuple[StateChange, ...]:
        """Take in one audit of an answer that the certificate keeps; what came of it.

        `drawn_at` is what `requests` was when the answer was given, if the judgement took time: an answer from before
        an alarm says nothing about the time after it, and is not counted there. Judge in the order of drawing.
        """
        counts = self._since_live.add(wrong, drawn_at)
        if self._since_alarm.add(wrong, drawn_at):
            self._recovery.update(wrong)
        if self.state in ("live", "drift") and counts:
            self._promise.update(wrong)
            if self._promise.broken:
                return (self._promise_broken(),)
        if self.state in ("drift", "fallback") and self.settings.recover and self._recovery.recovered:
            return (self._shown(),)
        return ()

    def go_live(self) -> tuple[StateChange, ...]:
        """End the shadow, by somebody's decision; nothing if it is over."""
        if self.state != "shadow":
            return ()
        why = f"taken live after {self.requests} requests in shadow; audited answers wrong: {self.live_error}"
        return (self._change("live", "go-live", why),)

    def resume(self, state: State) -> None:
        """Take up the state that was written down before a restart, which the audits alone may not show."""
        if state != self.state:
            self._enter(state)

    def _promise_broken(self) -> StateChange:
        test = self._promise
        alarm_at = 1 / (1 - test.confidence)
        why = (
            f"the promise of at most {100 * self.limit:g} % wrong does not hold: {test.errors} of {test.n} audited "
            f"answers were wrong, evidence {test.e_value:.0f} to 1 (alarm at {alarm_at:.0f}); the large model answers"
        )
        self._broken += 1
        return self._change("fallback", "promise", why, {"evidence": test.e_value, "alarm_at": alarm_at})

    def _drifted(self, watch: DriftDetector) -> StateChange:
        after: State = "fallback" if "fallback" in (self.state, self.settings.on_drift) else "drift"
        then = "the large model answers" if after == "fallback" else f"{self.settings.audit_share_on_drift:.0%} audited"
        return self._change(after, watch.name, f"{watch.why}; {then}", watch.evidence)

    def _shown(self) -> StateChange:
        test, lately = self._recovery, self._since_alarm.lately
        evidence = {"evidence": test.e_value, "alarm_at": 1 / (1 - test.confidence)}
        why = (
            f"audits show the promise of {100 * self.limit:g} % again: {test.errors} of {test.n} since the last alarm "
            f"were wrong, {sum(lately)} of the last {len(lately)}; evidence {test.e_value:.0f} to 1 (asked for: "
            f"{evidence['alarm_at']:.0f})"
        )
        return self._change("live", "shown", why, evidence)

    def _new_promise(self) -> GuaranteeTest:
        """The next test, with half the chance of a false alarm that the one before had: all together one budget."""
        return GuaranteeTest(
            self.limit, 1 - max((1 - self.settings.confidence) / 2 ** (self._broken + 1), MIN_FALSE_ALARM_RATE)
        )

    def _change(self, after: State, cause: Cause, why: str, evidence: dict[str, float] | None = None) -> StateChange:
        """Go over to `after`, where all proof begins anew."""
        error = self.live_error
        values = {"errors": self._since_live.errors, "audits": error.n, "low": error.low, "high": error.high}
        values |= {**(evidence or {}), "limit": self.limit}
        at, before = self.requests, self.state
        change = StateChange(at_request=at, before=before, after=after, cause=cause, why=why, values=values)
        if cause not in ("shown", "go-live"):
            self.alarms += (change,)
        self._enter(after)
        return change

    def _enter(self, state: State) -> None:
        """The state from now on; proof begins anew, and so does the live error if another model answers now."""
        answered_small, answers_small = (each in ("live", "drift") for each in (self.state, state))
        if answered_small != answers_small:
            self._since_live = _Audits(self.requests)
        if answers_small and self._promise.broken:
            self._promise = self._new_promise()
        self._since_alarm = _Audits(self.requests)
        self._recovery = RecoveryTest(self.limit, self.settings.confidence)
        self.state = state


class _Audits:
    """Audits of answers given after request `since`."""

    def __init__(self, since: int) -> None:
        self.since, self.n, self.errors = since, 0, 0
        self.lately: deque[bool] = deque(maxlen=_LATELY)

    def add(self, wrong: bool, drawn_at: int | None) -> bool:
        """Whether it counts here."""
        counts = drawn_at is None or drawn_at > self.since
        if counts:
            self.n += 1
            self.errors += wrong
            self.lately.append(wrong)
        return counts

    def interval(self, confidence: float) -> Estimate:
        return anytime_valid_interval(self.errors, self.n, confidence)
