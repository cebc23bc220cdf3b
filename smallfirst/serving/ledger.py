"""The ledger: one row per request, audit, feedback and change of state, written at once and never changed afterwards.

SQLite in WAL mode: readers (a report, another process) do not stop the writer. With
`synchronous=NORMAL` a commit is handed to the operating system without waiting for the disk, so a
killed process loses nothing; the price is that a power cut may take the last moments, though never
leave the file broken. All writes go through one thread, which keeps their order and keeps the event
loop free.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from smallfirst.errors import ConfigError
from smallfirst.records import Record
from smallfirst.serving.entries import AuditRow, Entry, FeedbackRow, LedgerRow, StateRow

__all__ = ["Ledger", "LedgerRow", "StageTotals"]

E = TypeVar("E", LedgerRow, AuditRow, FeedbackRow, StateRow)

_VERSION = 2
_FIRST = """
CREATE TABLE answers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    at TEXT NOT NULL,
    served_name TEXT NOT NULL,
    status INTEGER NOT NULL,
    latency_ms REAL NOT NULL,
    error_code TEXT,
    answered_by TEXT,
    stage TEXT,
    certified INTEGER,
    confidence REAL,
    threshold REAL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    cost_usd REAL,
    request_sha256 TEXT,
    request_text TEXT,
    answer_text TEXT
);
CREATE INDEX answers_at ON answers (at);
CREATE TRIGGER answers_stay BEFORE UPDATE ON answers
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER answers_last BEFORE DELETE ON answers
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_SECOND = """
ALTER TABLE answers ADD COLUMN task TEXT;
ALTER TABLE answers ADD COLUMN trail TEXT;
ALTER TABLE answers ADD COLUMN promise TEXT;
ALTER TABLE answers ADD COLUMN audit_share REAL;
ALTER TABLE answers ADD COLUMN audited INTEGER NOT NULL DEFAULT 0;
CREATE TABLE audits (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    at TEXT NOT NULL,
    task TEXT NOT NULL,
    certificate TEXT NOT NULL,
    propensity REAL NOT NULL,
    wrong INTEGER NOT NULL,
    judged_by TEXT NOT NULL,
    cost_usd REAL NOT NULL,
    draft TEXT,
    other TEXT
);
CREATE TABLE feedback (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    at TEXT NOT NULL,
    verdict TEXT NOT NULL,
    answer TEXT,
    caller TEXT NOT NULL
);
CREATE TABLE states (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    task TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    why TEXT NOT NULL,
    certificate TEXT NOT NULL
);
CREATE INDEX audits_id ON audits (id);
CREATE INDEX feedback_id ON feedback (id);
CREATE TRIGGER audits_stay BEFORE UPDATE ON audits BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER audits_last BEFORE DELETE ON audits BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER feedback_stay BEFORE UPDATE ON feedback BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER feedback_last BEFORE DELETE ON feedback BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER states_stay BEFORE UPDATE ON states BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER states_last BEFORE DELETE ON states BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_STEPS = (_FIRST, _SECOND)
"""What makes each format out of the one before; a ledger of an older format is brought up when it is opened."""
_TABLES: dict[type[Entry], str] = {
    LedgerRow: "answers",
    AuditRow: "audits",
    FeedbackRow: "feedback",
    StateRow: "states",
}


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

    def __init__(self, path: Path) -> None:
        """Opens or makes `path`, readable by its owner only. Raises ConfigError if it cannot."""
        self.path = path
        self._connection = _open(path)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

    def append(self, row: Entry) -> None:
        """Nothing; once it returns the row survives the death of this process."""
        self._writer.submit(self._write, row).result()

    async def append_async(self, row: Entry) -> None:
        """Nothing, as `append`, but without blocking the event loop.

        The row is written even if the caller is cancelled while it waits.
        """
        await asyncio.shield(asyncio.wrap_future(self._writer.submit(self._write, row)))

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
        return tuple(kind.model_validate(dict(row)) for row in reversed(found))

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
        self._writer.shutdown(wait=True)
        self._connection.close()

    def _write(self, row: Entry) -> None:
        values = row.model_dump()
        values["at"] = _utc(row.at)
        with self._connection:  # one transaction
            self._connection.execute(_insert(type(row)), values)

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


def _insert(kind: type[Entry]) -> str:
    names = list(kind.model_fields)
    return f"INSERT INTO {_TABLES[kind]} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"


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


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            # Taken before the version is read, so that two processes cannot both make the table.
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < _VERSION:
                _bring_up(connection, version)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"{path} cannot be used as a ledger: {error}", hint="choose another path for the ledger"
        ) from None
    if version > _VERSION:
        connection.close()
        raise ConfigError(
            f"{path} is a ledger of format {version}; this smallfirst reads format {_VERSION}",
            hint="pip install --upgrade smallfirst, or choose another path for the ledger",
        )
    return connection


def _bring_up(connection: sqlite3.Connection, version: int) -> None:
    # Not executescript(): that would commit first and so leave the transaction.
    statement = ""
    for line in "".join(_STEPS[version:]).splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute(f"PRAGMA user_version = {_VERSION}")
