"""The monitor of a certificate as the ledger makes it, so that all processes over one ledger are in the same state.

Audits and changes of state are applied in the order of the ledger, whichever process wrote them. What audits lead to,
each process finds by itself, and the first to write it down is the only one. A drift, which a process finds in its own
requests, is written first and applied when it is read, at the same place in the order by all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast, get_args

from sqlalchemy import Row

from smallfirst.routing.monitoring.drift import Statistic
from smallfirst.routing.monitoring.monitor import Monitor, OnRequests, State, StateChange
from smallfirst.serving.ledger.ledger import AlreadyRecorded, Ledger
from smallfirst.serving.ledger.reader import MOST_AUDITS, Watched
from smallfirst.serving.ledger.rows import LAST_AUDIT, StateRow

_log = logging.getLogger("smallfirst.serving")
FOLLOW_S = 1.0
"""Seconds after which a decision is not made before the ledger was read again."""


class FollowedMonitor:
    """The monitor of one task and certificate. Raise LedgerUnavailable where the ledger cannot be read or written."""

    def __init__(
        self, monitor: Monitor, ledger: Ledger, task: str, certificate: str, *, shadow_why: str, why: str
    ) -> None:
        """`monitor` is as at go-live; `why` is written down with its first state."""
        self.monitor, self._ledger, self._of = monitor, ledger, (task, certificate)
        monitor.told_of_drift = True
        self.cause = ""
        """What led to the present state."""
        self._audit_seq = self._state_seq = 0
        self._pending: list[StateRow] = []
        self._lock = asyncio.Lock()
        self._read_at_s = time.monotonic()
        known = ledger.watched(*self._of)
        if not known.changes:
            why = shadow_why if monitor.state == "shadow" else why
            with suppress(AlreadyRecorded):  # another process may be first
                ledger.append(self.row("", monitor.state, why, "", after_audit=0))
            known = ledger.watched(*self._of)
        self.since = known.changes[0].at
        """When the certificate went live."""
        more, recorded = True, set[tuple[int | None, str]]()
        while more:
            recorded |= {(row.after_audit, row.cause) for row in known.changes}
            if more := self._apply(known):
                known = ledger.watched(*self._of, self._audit_seq, self._state_seq)
        # Left are those of a process that was killed before it wrote them.
        self._pending = [row for row in self._pending if (row.after_audit, row.cause) not in recorded]

    def row(self, before: str, after: str, why: str, cause: str, *, after_audit: int | None = None) -> StateRow:
        """Return a change of state, or a note, as it is written."""
        task, certificate = self._of
        values = {"before": before, "after": after, "why": why, "cause": cause, "after_audit": after_audit}
        return StateRow.model_validate({"at": datetime.now(UTC), "task": task, "certificate": certificate, **values})

    async def found(self, changes: Sequence[StateChange]) -> None:
        """Write down what this process found in its requests, and apply it."""
        for change in changes:
            place = LAST_AUDIT if change.cause in get_args(Statistic) else None
            self._pending.append(self._changed(change, place))
        if changes:
            await self.follow()

    async def follow(self, *, older_than_s: float = -1.0) -> None:
        """Apply what was written since the ledger was read last, if that is longer ago than `older_than_s`."""
        if time.monotonic() - self._read_at_s <= older_than_s:
            return
        async with self._lock:
            if (now := time.monotonic()) - self._read_at_s <= older_than_s:
                return  # another request has read it meanwhile
            more = True
            while more:
                await self._write_pending()
                seqs = (self._audit_seq, self._state_seq)
                more = self._apply(await asyncio.to_thread(self._ledger.watched, *self._of, *seqs))
            await self._write_pending()
            # Never fewer: one that has ended may have been near an alarm.
            self.monitor.processes = max(self.monitor.processes, self._ledger.n_servers)
            self._read_at_s = now

    def _apply(self, new: Watched) -> bool:
        """Apply audits and changes in their one order; return True if there may be more of them."""
        steps = [
            *(((audit.seq, 0, 0), audit) for audit in new.audits),
            *(((row.after_audit or 0, 1, row.seq), row) for row in new.changes),
        ]
        for (place, is_change, _), row in sorted(steps, key=lambda step: step[0]):
            self.monitor.moment = row.at
            if is_change:
                self._change(row)
                continue
            kind = {"weight": row.weight, "answered_at": row.answered_at, "certified": row.certified}
            for change in self.monitor.record_audit(row.wrong, **kind):
                self._pending.append(self._changed(change, place))
                if change.before != change.after:
                    self.cause = change.cause
        self._audit_seq = max(self._audit_seq, *(audit.seq for audit in new.audits), 0)
        self._state_seq = max(self._state_seq, *(row.seq for row in new.changes), 0)
        return len(new.audits) == MOST_AUDITS

    def _change(self, row: Row[Any]) -> None:
        if row.cause in get_args(OnRequests):
            self.monitor.resume_broken({row.cause})
        elif row.cause in get_args(Statistic):
            self.monitor.adopt(cast(Statistic, row.cause), row.why)
            self.cause = row.cause if row.before != row.after else self.cause
        elif row.before not in ("", row.after) and row.after != self.monitor.state and row.cause != "version":
            self.monitor.resume(cast(State, row.after))
            self.cause = row.cause

    def _changed(self, change: StateChange, place: int | None) -> StateRow:
        return self.row(change.before, change.after, change.why, change.cause, after_audit=place)

    async def _write_pending(self) -> None:
        while self._pending:
            row = self._pending[0]
            try:
                await self._ledger.append_async(row)
                _log.warning("%s: %s -> %s: %s", row.task, row.before, row.after, row.why)
            except AlreadyRecorded:  # another process was first
                _log.info("%s: %s -> %s, found by another process as well", row.task, row.before, row.after)
            self._pending.pop(0)
