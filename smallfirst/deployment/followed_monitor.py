"""The monitor of a certificate as the ledger makes it, so that all processes over one ledger are in the same state.

Audits and changes of state are applied in the order of the ledger, whichever process wrote them. What audits lead to,
each process finds by itself, and the first to write it down is the only one. A drift, which a process finds in its own
requests, is written first and applied when it is read, at the same place in the order by all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast, get_args

from sqlalchemy import Row

from smallfirst.routing.monitoring.drift import Statistic
from smallfirst.routing.monitoring.monitor import Monitor, OnRequests, State, StateChange
from smallfirst.serving.ledger.ledger import AlreadyRecorded, Ledger
from smallfirst.serving.ledger.reader import Watched
from smallfirst.serving.ledger.rows import LAST_AUDIT, StateRow

_log = logging.getLogger("smallfirst.serving")
FOLLOW_S = 1.0
"""Seconds after which a decision is not made before the ledger was read again."""
DERIVED = ("guarantee", "recovery", "live_error", "verdict")
"""Causes of changes that follow from audits alone."""
_MANY = 1_000
"""Audits from which on they are applied in a thread."""


class Replay:
    """A monitor to which a part of the ledger was applied."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.monitor.told_of_drift = True
        self.audit_seq = self.state_seq = 0
        self.cause = ""
        """What led to the present state."""
        self.first: datetime | None = None
        """When the first state was written."""
        self.derived: list[tuple[int, datetime, StateChange]] = []
        """What audits led to, with the `seq` and the time of the last one."""
        self._began = [datetime.min.replace(tzinfo=UTC)]

    def epoch_at(self, moment: datetime) -> int:
        """Return the monitor's epoch at a moment."""
        return bisect_right(self._began, moment) - 1

    def play(self, new: Watched) -> Row[Any] | None:
        """Apply what is new; return the last audit that corrects an earlier one: then a new replay must play all."""
        last: dict[str, Row[Any]] = {}
        first: dict[str, int] = {}
        correction: Row[Any] | None = None
        for audit in new.audits:
            correction = audit if audit.id in last or (self.audit_seq and audit.revision) else correction
            last[audit.id] = audit
            first.setdefault(audit.id, audit.seq)
        if correction is not None and self.audit_seq:
            return correction
        corrected, times = correction.seq if correction is not None else 0, [audit.at for audit in new.audits]
        places = [new.audits[i - 1].seq if (i := bisect_right(times, row.at)) else 0 for row in new.changes]
        steps = [
            *(((first[audit.id], 0, 0), audit) for audit in last.values()),
            *(
                ((place if row.after_audit is None else row.after_audit, 1, row.seq), row)
                for place, row in zip(places, new.changes, strict=True)
            ),
        ]
        for (place, is_change, _), row in sorted(steps, key=lambda step: step[0]):
            if not is_change:
                self._audit(row, place)
            elif not (row.cause in DERIVED and place < corrected):  # what a corrected verdict led to is found anew
                self._change(row)
            self._began += [row.at] * (self.monitor.epoch + 1 - len(self._began))
        entered = [row for row in new.changes if row.before not in ("", row.after) and row.cause != "version"]
        self.cause = next((row.cause for row in reversed(entered) if row.after == self.monitor.state), self.cause)
        self.audit_seq = new.audits[-1].seq if new.audits else self.audit_seq
        self.state_seq = new.changes[-1].seq if new.changes else self.state_seq
        return correction

    def _audit(self, row: Row[Any], place: int) -> None:
        if row.judged_by == "nobody":
            return
        audit = self.monitor.record_audit
        for change in audit(row.wrong, weight=row.weight, epoch=row.epoch, certified=row.certified):
            self.derived.append((place, row.at, change))
            if change.before != change.after:
                self.cause = change.cause

    def _change(self, row: Row[Any]) -> None:
        self.first = self.first or row.at
        if row.cause in get_args(OnRequests):
            self.monitor.resume_broken({row.cause})
        elif row.cause in get_args(Statistic):
            self.monitor.adopt(cast(Statistic, row.cause), row.why)
        elif row.before not in ("", row.after) and row.cause != "version":
            self.monitor.resume(cast(State, row.after))


class FollowedMonitor:
    """The monitor of one task and certificate. Raise LedgerUnavailable where the ledger cannot be read or written."""

    def __init__(
        self, new: Callable[[], Monitor], ledger: Ledger, task: str, certificate: str, *, shadow_why: str, why: str
    ) -> None:
        """`new` creates a monitor as at go-live; `why` is written down with its first state."""
        self._new, self._ledger, self._of = new, ledger, (task, certificate)
        self._pending: list[StateRow] = []
        self._lock = asyncio.Lock()
        self._read_at_s = time.monotonic()
        self.replay = self._played(known := ledger.watched(*self._of))
        if not known.changes:
            state = self.monitor.state
            first = self.row("", state, shadow_why if state == "shadow" else why, "", after_audit=0)
            with suppress(AlreadyRecorded):  # another process may be first
                ledger.append(first)
            self.replay = self._played(known := ledger.watched(*self._of))
        recorded = {(row.after_audit, row.cause) for row in known.changes}
        old = max((row.at for row in known.changes if row.after_audit is None), default=known.changes[0].at)
        for seq, at, change in self.replay.derived:  # of a process that was killed before it wrote them
            if (seq, change.cause) not in recorded and at > old:
                self._pending.append(self._derived(seq, change))
        self.replay.derived.clear()

    @property
    def monitor(self) -> Monitor:
        return self.replay.monitor

    @property
    def since(self) -> datetime:
        """When the certificate went live."""
        assert self.replay.first is not None
        return self.replay.first

    def row(self, before: str, after: str, why: str, cause: str, *, after_audit: int | None = None) -> StateRow:
        """Return a change of state, or a note, as it is written."""
        task, certificate = self._of
        values = {"before": before, "after": after, "why": why, "cause": cause, "after_audit": after_audit}
        return StateRow.model_validate({"at": datetime.now(UTC), "task": task, "certificate": certificate, **values})

    async def found(self, changes: Sequence[StateChange]) -> None:
        """Write down what this process found in its requests, and apply it."""
        for change in changes:
            place = LAST_AUDIT if change.cause in get_args(Statistic) else None
            self._pending.append(self.row(change.before, change.after, change.why, change.cause, after_audit=place))
        if changes:
            await self.follow()

    async def follow(self, *, older_than_s: float = -1.0) -> None:
        """Apply what was written since the ledger was read last, if that is longer ago than `older_than_s`."""
        if time.monotonic() - self._read_at_s <= older_than_s:
            return
        async with self._lock:
            if (now := time.monotonic()) - self._read_at_s <= older_than_s:
                return  # another request has read it meanwhile
            await self._write_pending()
            replay = self.replay
            new = await asyncio.to_thread(self._ledger.watched, *self._of, replay.audit_seq, replay.state_seq)
            if len(new.audits) > _MANY or (correction := replay.play(new)) is not None:
                correction = correction if len(new.audits) <= _MANY else None
                await self._play_all(correction)
            self._pending += [self._derived(seq, change) for seq, _, change in self.replay.derived]
            self.replay.derived.clear()
            await self._write_pending()
            # Never fewer: one that has ended may have been near an alarm.
            self.monitor.processes = max(self.monitor.processes, self._ledger.n_servers)
            self._read_at_s = now

    async def _play_all(self, correction: Row[Any] | None) -> None:
        """Build the monitor anew. In a thread, since there may be very many audits."""
        known = await asyncio.to_thread(self._ledger.watched, *self._of)
        earlier, self.replay = self.replay, await asyncio.to_thread(self._played, known)
        self.monitor.take_over(earlier.monitor)
        after = correction.seq if correction is not None else earlier.audit_seq
        self.replay.derived = [one for one in self.replay.derived if one[0] > after]
        before, changes = earlier.monitor.state, known.changes
        told = any(row.cause == "verdict" and row.seq > earlier.state_seq for row in changes)
        if correction is not None and self.monitor.state != before and not (told or self.replay.derived):
            done = "withdrew" if correction.judged_by == "nobody" else "corrected"
            why = f"a person {done} the verdict on {correction.id}"
            self._pending.append(self.row(before, self.monitor.state, why, "verdict", after_audit=after))
            self.replay.cause = "verdict"

    def _played(self, known: Watched) -> Replay:
        replay = Replay(self._new())
        replay.play(known)
        return replay

    def _derived(self, seq: int, change: StateChange) -> StateRow:
        return self.row(change.before, change.after, change.why, change.cause, after_audit=seq)

    async def _write_pending(self) -> None:
        while self._pending:
            row = self._pending[0]
            try:
                await self._ledger.append_async(row)
                _log.warning("%s: %s -> %s: %s", row.task, row.before, row.after, row.why)
            except AlreadyRecorded:  # another process was first
                _log.info("%s: %s -> %s, found by another process as well", row.task, row.before, row.after)
            self._pending.pop(0)
