"""The ledger: one row per request, attempt, audit, feedback and change of state, written at once and never changed.

With SQLite's WAL mode and `synchronous=NORMAL` readers do not block the writer and a killed process loses nothing; a
power cut may lose the last moments but never breaks the file.
"""

from __future__ import annotations

import logging
import math
import socket
import sqlite3
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.records import Record
from smallfirst.serving.ledger.body_store import (
    KEEP_DAYS,
    Body,
    BodyStore,
    body_id,
    body_of,
    columns_without_body,
    utc_text,
    with_body,
)
from smallfirst.serving.ledger.group_commit import GroupCommitWriter
from smallfirst.serving.ledger.rows import (
    AttemptRow,
    AuditRow,
    DraftRow,
    Entry,
    ExpenseRow,
    FeedbackRow,
    LedgerRow,
    StateRow,
)
from smallfirst.serving.ledger.schema import VERSION, open_ledger
from smallfirst.serving.ledger.sums import Dimension, Period, Sums, sum_up

__all__ = ["Ledger", "LedgerRow", "LedgerUnavailable", "StageTotals"]

_log = logging.getLogger("smallfirst.serving")

EXPIRY_INTERVAL_S = 600.0
"""Seconds between two deletions of the questions and answers that are too old."""

UPTIME_INTERVAL_S = 60.0
"""Seconds between two notes that a server is up; what a killed one was up since the last is lost."""

E = TypeVar("E", LedgerRow, AttemptRow, AuditRow, DraftRow, FeedbackRow, StateRow, ExpenseRow)

_TABLES: dict[type[Entry], str] = {
    LedgerRow: "answers",
    AttemptRow: "attempts",
    AuditRow: "audits",
    DraftRow: "drafts",
    FeedbackRow: "feedback",
    StateRow: "states",
    ExpenseRow: "expenses",
}


_NAMES = {kind: tuple(name for name in kind.model_fields if name != "at") for kind in _TABLES}
"""Columns of each table except `at`, which comes first in a statement."""
_INSERTS = {
    kind: f"INSERT INTO {_TABLES[kind]} (at, {', '.join(names)}) VALUES ({', '.join('?' * (len(names) + 1))})"
    for kind, names in _NAMES.items()
}
_PROBE = f"PRAGMA user_version = {VERSION}"
_Statement = tuple[str, tuple[Any, ...]]


class LedgerUnavailable(SmallfirstError):
    """A row could not be written: the disk is full, or the file is not writable. The next row is tried again."""

    retryable = True


class AlreadyRecorded(SmallfirstError):
    """The ledger holds another row of this kind about the same answer: each verdict of an audit is there once."""


class StageTotals(Record):
    """Sums over the rows of one stage."""

    n: int
    cost_usd: float
    """Sum of the costs that are known."""
    n_cost_unknown: int
    """Rows without a cost: no model was asked."""
    prompt_tokens: int
    completion_tokens: int
    p50_latency_ms: float


class Ledger:
    """An append-only SQLite file. Any thread may append and read, other processes may read."""

    def __init__(self, path: Path, *, keep_bodies_days: int = KEEP_DAYS) -> None:
        """Open or create `path`, readable by its owner only. Raise ConfigError if that fails.

        Questions and answers are in a file of their own beside it and are deleted after `keep_bodies_days`.
        """
        self.path = path
        self._connection = open_ledger(path)
        self._writer: GroupCommitWriter[tuple[_Statement, ...]] = GroupCommitWriter(self._write, name="ledger")
        self._body_writer: GroupCommitWriter[tuple[str, Body]] = GroupCommitWriter(self._write_bodies, name="bodies")
        self._closed = threading.Event()
        self._keep_days = keep_bodies_days
        self._bodies_path = path.with_name(f"{path.stem}-bodies.db")
        self._bodies: BodyStore | None = None
        self._lock = threading.Lock()

    def append(self, *rows: Entry) -> None:
        """Write all rows or none; once this returns, they survive the death of the process. Raise LedgerUnavailable."""
        for row in rows:
            if body := body_of(row):
                self._body_writer.put((body_id(row), body))
        self._writer.put(tuple(map(_statement, rows)))

    async def append_async(self, *rows: Entry) -> None:
        """Write all rows or none without blocking the event loop, even if the caller is cancelled.

        Raise LedgerUnavailable.
        """
        for row in rows:
            if body := body_of(row):
                await self._body_writer.put_async((body_id(row), body))
        await self._writer.put_async(tuple(map(_statement, rows)))

    async def ready(self) -> None:
        """Write a transaction that changes nothing. Raise LedgerUnavailable if no row could be written now."""
        await self._writer.put_async(((_PROBE, ()),))

    def rows(self, since: datetime | None = None, limit: int | None = None) -> tuple[LedgerRow, ...]:
        """Return the rows at or after `since`, the newest `limit` of them, in the order of writing."""
        return self.entries(LedgerRow, since=since, limit=limit)

    def entries(
        self, kind: type[E], *, since: datetime | None = None, limit: int | None = None, **equal: str
    ) -> tuple[E, ...]:
        """Return the entries of a kind whose fields equal those given (`task="tickets"`), limited as in `rows`."""
        for name in equal:  # names become part of the statement
            if name not in kind.model_fields:
                raise KeyError(name)
        where = "".join(f" AND {name} = ?" for name in equal)
        found = self._read(
            f"SELECT {', '.join(kind.model_fields)} FROM {_TABLES[kind]}"
            f" WHERE at >= ?{where} ORDER BY seq DESC LIMIT ?",
            (utc_text(since) if since else "", *equal.values(), -1 if limit is None else limit),
        )
        rows = [kind.model_validate(dict(row)) for row in reversed(found)]
        bodies = self._read_bodies([id for row in rows if (id := body_id(row))])
        return tuple(with_body(row, bodies.get(body_id(row))) for row in rows) if bodies else tuple(rows)

    def get(self, id: str) -> LedgerRow | None:
        found = self.entries(LedgerRow, id=id)
        return found[0] if found else None

    def last_verdicts(self, task: str, certificate: str) -> list[tuple[bool, float]]:
        """Return the verdict that stands on each audited answer of a certificate: whether wrong, and weight."""
        sql = "SELECT id, wrong, weight, judged_by FROM audits WHERE task = ? AND certificate = ? ORDER BY seq"
        last = {row["id"]: row for row in self._read(sql, (task, certificate))}
        return [(bool(row["wrong"]), row["weight"]) for row in last.values() if row["judged_by"] != "nobody"]

    def totals(self) -> dict[str, StageTotals]:
        """Return sums by stage; rows that did not end with an answer are under `error`."""
        stages: dict[str, list[sqlite3.Row]] = {}
        for row in self._read(
            "SELECT CASE WHEN status = 200 THEN stage ELSE 'error' END AS stage, latency_ms,"
            " cost_usd, prompt_tokens, completion_tokens FROM answers ORDER BY stage"
        ):
            stages.setdefault(row["stage"], []).append(row)
        return {stage: _sum_up(rows) for stage, rows in stages.items()}

    def sums(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        by: Sequence[Dimension] = ("task", "stage"),
        every: Period | None = None,
        **equal: str,
    ) -> tuple[Sums, ...]:
        """Return sums over the rows in [since, until), by these fields and by hour, day or month, earliest first.

        `equal` keeps rows whose fields have these values (`task="tickets"`).
        """
        return sum_up(self, since, until, by=by, every=every, equal=equal)

    def task_totals(self, since: datetime) -> dict[tuple[str, str], tuple[int, float]]:
        """Return the number and the cost in USD of the answers since then by task and stage, audits under `audit`."""
        found = self._read(
            "SELECT task, coalesce(stage, '') AS stage, count(*) AS n, total(cost_usd) AS cost_usd FROM answers"
            " WHERE at >= ? AND status = 200 AND task IS NOT NULL GROUP BY task, stage UNION ALL"
            " SELECT task, 'audit', count(*), total(cost_usd) FROM audits WHERE at >= ? GROUP BY task",
            (utc_text(since), utc_text(since)),
        )
        return {(row["task"], row["stage"]): (row["n"], row["cost_usd"]) for row in found}

    def scan(
        self, kind: type[E], since: datetime | None = None, until: datetime | None = None, **equal: str
    ) -> Iterator[E]:
        """Yield the entries of a kind in [since, until), one after the other in the order of writing, without texts."""
        for row in self.entries(kind, since=since, limit=None, **equal):
            if until is None or row.at < until:
                yield row

    def audited_costs(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> list[tuple[str, float, float]]:
        """Return task, propensity and the judge's cost in USD of audits by the large model of certified answers."""
        found = self._read(
            "SELECT audits.task, propensity, max(audits.cost_usd) FROM audits JOIN answers USING (id) WHERE certified"
            " AND judged_by = 'large' AND audits.at >= ? AND audits.at < ? GROUP BY audits.id",
            (utc_text(since) if since else "", utc_text(until) if until else "~"),
        )
        return [(row[0], row[1], row[2]) for row in found]

    def note_uptime(self, since: datetime, until: datetime, machine: str = "") -> None:
        """Note that this host, priced as `machine` of the settings, was up in [since, until).

        Times that overlap, of several servers on one host, count once. Raise LedgerUnavailable.
        """
        host, begin = socket.gethostname(), since.astimezone(UTC)
        while begin < until:
            hour = begin.replace(minute=0, second=0, microsecond=0)
            end = min(hour + timedelta(hours=1), until.astimezone(UTC))
            sql = (
                "INSERT INTO machine_hours VALUES (?1, ?2, ?3, (julianday(?5) - julianday(?4)) * 86400, ?5)"
                " ON CONFLICT DO UPDATE SET noted_until = max(noted_until, ?5), up_s = up_s"
                " + max(0, (julianday(?5) - julianday(max(noted_until, ?4))) * 86400)"
            )
            self._writer.put(((sql, (hour.isoformat()[:13], machine, host, utc_text(begin), utc_text(end))),))
            begin = end

    def uptime(self, since: datetime | None = None, until: datetime | None = None) -> dict[str, float]:
        """Return the seconds for which servers ran in the hours of [since, until), by machine of the settings.

        Two hosts with the same name of a machine count twice.
        """
        found = self._read(
            "SELECT machine, sum(up_s) FROM machine_hours WHERE hour >= ? AND hour || ':00:00.000000+00:00' < ?"
            " GROUP BY machine",
            (utc_text(since)[:13] if since else "", utc_text(until) if until else "~"),
        )
        return {row[0]: row[1] for row in found}

    def expire_bodies(self) -> int:
        """Delete the questions and answers that are too old, whether or not new ones are kept; return their number."""
        return self._open_bodies().expire() if self._bodies_path.exists() else 0

    def start_expiry(self) -> None:
        """Call `expire_bodies` now and every EXPIRY_INTERVAL_S in a thread of its own, until the ledger is closed."""
        threading.Thread(target=self._expire_regularly, name="expiry", daemon=True).start()

    def start_uptime(self, machine: str = "") -> None:
        """Call `note_uptime` every UPTIME_INTERVAL_S in a thread of its own, until the ledger is closed."""
        threading.Thread(target=self._note_regularly, args=(machine,), name="uptime", daemon=True).start()

    def close(self) -> None:
        """Wait for pending rows and close the file. Safe to call twice."""
        self._closed.set()
        self._body_writer.close()
        self._writer.close()
        self._connection.close()
        if self._bodies is not None:
            self._bodies.close()

    def _expire_regularly(self) -> None:
        while not self._closed.is_set():
            try:
                self.expire_bodies()
            except (sqlite3.Error, ConfigError) as error:
                _log.warning("%s: nothing was deleted: %s", self._bodies_path, error)
            self._closed.wait(EXPIRY_INTERVAL_S)

    def _note_regularly(self, machine: str) -> None:
        noted, closed = datetime.now(UTC), False
        while not closed:
            closed = self._closed.wait(UPTIME_INTERVAL_S)
            now = datetime.now(UTC)
            # A clock that went back or a computer that slept is no time up.
            begin = max(noted, now - timedelta(seconds=2 * UPTIME_INTERVAL_S))
            try:
                self.note_uptime(begin, now, machine)
            except (LedgerUnavailable, RuntimeError) as error:
                _log.warning("%s: uptime was not noted: %s", self.path, error)
            noted = now

    def _write_bodies(self, bodies: Sequence[tuple[str, Body]]) -> None:
        try:
            self._open_bodies().put_all(bodies)
        except sqlite3.Error as error:
            raise LedgerUnavailable(
                f"{self._bodies_path} takes no text: {error}",
                hint="make room on its disk and see that it can be written to; the next one is tried again",
            ) from None

    def _read_bodies(self, ids: Sequence[str]) -> dict[str, Body]:
        exists = self._bodies is not None or self._bodies_path.exists()
        return self._open_bodies().many(ids) if ids and exists else {}

    def _open_bodies(self) -> BodyStore:
        with self._lock:
            if self._bodies is None:
                self._bodies = BodyStore(self._bodies_path, keep_days=self._keep_days)
            return self._bodies

    def _write(self, entries: Sequence[tuple[_Statement, ...]]) -> None:
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                for sql, values in chain.from_iterable(entries):
                    self._connection.execute(sql, values)
        except sqlite3.IntegrityError as error:
            raise AlreadyRecorded(f"{self.path} has such a row already: {error}") from None
        except sqlite3.OperationalError as error:  # full, read-only, locked for too long, failing disk
            raise LedgerUnavailable(
                f"{self.path} takes no row: {error}",
                hint="make room on its disk and see that it can be written to; the next row is tried again",
            ) from None

    def _read(self, sql: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        # Each read has a connection of its own, so a long report never blocks the writer.
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as reader:
            reader.row_factory = sqlite3.Row
            return reader.execute(sql, values).fetchall()


def _statement(row: Entry) -> _Statement:
    values = {**row.__dict__, **columns_without_body(row)}
    return _INSERTS[type(row)], (utc_text(row.at), *(values[name] for name in _NAMES[type(row)]))


def _sum_up(rows: list[sqlite3.Row]) -> StageTotals:
    costs = [row["cost_usd"] for row in rows if row["cost_usd"] is not None]
    return StageTotals(
        n=len(rows),
        cost_usd=math.fsum(costs),
        n_cost_unknown=len(rows) - len(costs),
        prompt_tokens=sum(row["prompt_tokens"] or 0 for row in rows),
        completion_tokens=sum(row["completion_tokens"] or 0 for row in rows),
        p50_latency_ms=statistics.median(row["latency_ms"] for row in rows),
    )
