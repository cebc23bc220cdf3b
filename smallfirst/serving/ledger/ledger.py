"""The ledger: one row per request, audit, feedback and change of state, written at once and never changed afterwards.

SQLite in WAL mode: readers (a report, another process) do not stop the writer. With
`synchronous=NORMAL` a commit is handed to the operating system without waiting for the disk, so a
killed process loses nothing; the price is that a power cut may take the last moments, though never
leave the file broken. All writes go through one thread (`writer`), which keeps their order, writes
what waits together in one transaction, and keeps the event loop free.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import statistics
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from smallfirst.errors import SmallfirstError
from smallfirst.records import Record
from smallfirst.serving.ledger.body_columns import Text, place_of, text_of, with_text, without_text
from smallfirst.serving.ledger.body_store import KEEP_DAYS, Body, BodyStore
from smallfirst.serving.ledger.group_commit import GroupCommitWriter
from smallfirst.serving.ledger.rows import AuditRow, Entry, FeedbackRow, LedgerRow, StateRow
from smallfirst.serving.ledger.schema import VERSION, open_ledger

__all__ = ["Ledger", "LedgerRow", "LedgerUnavailable", "StageTotals"]

E = TypeVar("E", LedgerRow, AuditRow, FeedbackRow, StateRow)

_TABLES: dict[type[Entry], str] = {
    LedgerRow: "answers",
    AuditRow: "audits",
    FeedbackRow: "feedback",
    StateRow: "states",
}


_NAMES = {kind: tuple(name for name in kind.model_fields if name != "at") for kind in _TABLES}
"""Columns of each table but the moment, which comes first in a statement."""
_INSERTS = {
    kind: f"INSERT INTO {_TABLES[kind]} (at, {', '.join(names)}) VALUES ({', '.join('?' * (len(names) + 1))})"
    for kind, names in _NAMES.items()
}
_PROBE = f"PRAGMA user_version = {VERSION}"
_Statement = tuple[str, tuple[Any, ...]]


class LedgerUnavailable(SmallfirstError):
    """The ledger could not take a row: its disk is full, or the file cannot be written to. The next one is tried."""

    retryable = True


class StageTotals(Record):
    """Sums over the rows of one stage."""

    n: int
    """Rows."""
    cost_usd: float
    """Sum of the costs that are known."""
    n_cost_unknown: int
    """Rows without a cost (failed ones)."""
    prompt_tokens: int
    """Tokens read."""
    completion_tokens: int
    """Tokens written."""
    p50_latency_ms: float
    """Median latency."""


class Ledger:
    """An append-only SQLite file. Any thread may append and read, other processes may read."""

    def __init__(self, path: Path, *, keep_bodies_days: int = KEEP_DAYS) -> None:
        """Opens or makes `path`, readable by its owner only. Raises ConfigError if it cannot.

        What people wrote stands beside it, in a file of its own, and is forgotten after `keep_bodies_days`.
        """
        self.path = path
        self._connection = open_ledger(path)
        self._writer: GroupCommitWriter[_Statement] = GroupCommitWriter(self._write, name="ledger")
        self._keep_days = keep_bodies_days
        self._bodies_path = path.with_name(f"{path.stem}-bodies.db")
        self._bodies: BodyStore | None = None
        self._door = threading.Lock()

    def append(self, row: Entry) -> None:
        """Nothing; once it returns the row survives the death of this process. Raises NotRecorded."""
        if text := text_of(row):
            self._keep(text)
        self._writer.put(_statement(row))

    async def append_async(self, row: Entry) -> None:
        """Nothing, as `append`, but without blocking the event loop. Raises NotRecorded.

        The row is written even if the caller is cancelled while it waits.
        """
        if text := text_of(row):
            await asyncio.to_thread(self._keep, text)
        await self._writer.put_async(_statement(row))

    async def ready(self) -> None:
        """Nothing if a row would be taken now. Raises NotRecorded. A transaction is written that changes nothing."""
        await self._writer.put_async((_PROBE, ()))

    def rows(self, since: datetime | None = None, limit: int | None = None) -> tuple[LedgerRow, ...]:
        """Rows at or after `since`, the newest `limit` of them, in the order of writing."""
        return self.entries(LedgerRow, since=since, limit=limit)

    def entries(
        self, kind: type[E], *, since: datetime | None = None, limit: int | None = None, **equal: str
    ) -> tuple[E, ...]:
        """Entries of a kind whose fields equal those given (`task="tickets"`), limited as `rows`."""
        where = "".join(f" AND {name} = ?" for name in _checked(kind, equal))
        found = self._read(
            f"{_select(kind)} WHERE at >= ?{where} ORDER BY seq DESC LIMIT ?",
            (_utc(since) if since else "", *equal.values(), -1 if limit is None else limit),
        )
        rows = [kind.model_validate(dict(row)) for row in reversed(found)]
        texts = self._texts([place for row in rows if (place := place_of(row))])
        return tuple(with_text(row, texts.get(place_of(row))) for row in rows) if texts else tuple(rows)

    def get(self, id: str) -> LedgerRow | None:
        """The row of one response, or None."""
        found = self.entries(LedgerRow, id=id)
        return found[0] if found else None

    def totals(self) -> dict[str, StageTotals]:
        """Sums per stage; rows that did not end with an answer are under `error`."""
        stages: dict[str, list[sqlite3.Row]] = {}
        for row in self._read(
            "SELECT CASE WHEN status = 200 THEN stage ELSE 'error' END AS stage, latency_ms,"
            " cost_usd, prompt_tokens, completion_tokens FROM answers ORDER BY stage"
        ):
            stages.setdefault(row["stage"], []).append(row)
        return {stage: _sum_up(rows) for stage, rows in stages.items()}

    def close(self) -> None:
        """Waits for rows on their way and closes the file. Safe to call twice."""
        self._writer.close()
        self._connection.close()
        if self._bodies is not None:
            self._bodies.close()

    def _keep(self, text: Text) -> None:
        try:
            self._open_bodies().put(*text)
        except sqlite3.Error as error:
            raise LedgerUnavailable(
                f"{self._bodies_path} takes no text: {error}",
                hint="make room on its disk and see that it can be written to; the next one is tried again",
            ) from None

    def _texts(self, places: Sequence[str]) -> dict[str, Body]:
        there = self._bodies is not None or self._bodies_path.exists()
        return self._open_bodies().many(places) if places and there else {}

    def _open_bodies(self) -> BodyStore:
        with self._door:
            if self._bodies is None:
                self._bodies = BodyStore(self._bodies_path, keep_days=self._keep_days)
            return self._bodies

    def _write(self, statements: Sequence[_Statement]) -> None:
        """All in one transaction, or none. Raises NotRecorded."""
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                for sql, values in statements:
                    self._connection.execute(sql, values)
        except sqlite3.OperationalError as error:  # full, read-only, locked for too long, failing disk
            raise LedgerUnavailable(
                f"{self.path} takes no row: {error}",
                hint="make room on its disk and see that it can be written to; the next row is tried again",
            ) from None

    def _read(self, sql: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        # A connection of its own for each reading: a long report never holds up the writer.
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as reader:
            reader.row_factory = sqlite3.Row
            return reader.execute(sql, values).fetchall()


def _checked(kind: type[Entry], names: Iterable[str]) -> Iterator[str]:
    """The names, each of which is a column. Raises KeyError: a name becomes part of a statement."""
    for name in names:
        if name not in kind.model_fields:
            raise KeyError(name)
        yield name


def _select(kind: type[Entry]) -> str:
    return f"SELECT {', '.join(kind.model_fields)} FROM {_TABLES[kind]}"


def _statement(row: Entry) -> _Statement:
    """The statement that adds a row, with its values in the order of the columns."""
    values = {**row.__dict__, **without_text(row)}
    return _INSERTS[type(row)], (_utc(row.at), *(values[name] for name in _NAMES[type(row)]))


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


def _utc(moment: datetime) -> str:
    """`moment` as text of fixed width, so that order as text is order in time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
