"""The ledger: one row per request, written before its answer is sent, never changed afterwards.

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime

from smallfirst.errors import ConfigError
from smallfirst.records import Record

_VERSION = 1
_SCHEMA = """
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


class LedgerRow(Record):
    """What one request got. A failed one has no answer: its cost and tokens are None, not 0."""

    id: str
    """Id of the response, as the client saw it in `id` and `x-request-id`."""
    at: AwareDatetime
    """When the request came; kept in UTC."""
    served_name: str
    """Model name the client asked for; empty if the request was not readable."""
    status: int
    """HTTP status: 200, or that of the error; 499 if the client left first."""
    latency_ms: float
    """Of an answer: as its model measured it; of an error: until it was known."""
    error_code: str | None = None
    """`error.code` as the client saw it."""
    answered_by: str | None = None
    """Model that wrote the answer."""
    stage: str | None = None
    """Stage of the Router (`small`, `large`), or the served name where no Router chose."""
    certified: bool | None = None
    """True if a certificate covers the answer."""
    confidence: float | None = None
    """Confidence the route was chosen by, in [0, 1]."""
    threshold: float | None = None
    """Confidence that was asked for, in [0, 1]."""
    prompt_tokens: int | None = None
    """Tokens read."""
    completion_tokens: int | None = None
    """Tokens written."""
    cost_usd: float | None = None
    """What the answer cost, thrown-away drafts included."""
    request_sha256: str | None = None
    """SHA-256 of the messages; equal questions can be found without keeping them."""
    request_text: str | None = None
    """The messages as JSON, only if bodies are stored."""
    answer_text: str | None = None
    """The answer, only if bodies are stored."""


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


_COLUMNS = tuple(LedgerRow.model_fields)
_INSERT = f"INSERT INTO answers ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{c}' for c in _COLUMNS)})"
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM answers"


class Ledger:
    """An append-only SQLite file. Any thread may append and read, other processes may read."""

    def __init__(self, path: Path) -> None:
        """Opens or makes `path`, readable by its owner only. Raises ConfigError if it cannot."""
        self.path = path
        self._connection = _open(path)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

    def append(self, row: LedgerRow) -> None:
        """Nothing; once it returns the row survives the death of this process."""
        self._writer.submit(self._write, row).result()

    async def append_async(self, row: LedgerRow) -> None:
        """Nothing, as `append`, but without blocking the event loop.

        The row is written even if the caller is cancelled while it waits.
        """
        await asyncio.shield(asyncio.wrap_future(self._writer.submit(self._write, row)))

    def rows(self, since: datetime | None = None, limit: int | None = None) -> tuple[LedgerRow, ...]:
        """Rows at or after `since`, the newest `limit` of them, in the order of writing."""
        found = self._read(
            f"{_SELECT} WHERE at >= ? ORDER BY seq DESC LIMIT ?",
            (_utc(since) if since else "", -1 if limit is None else limit),
        )
        return tuple(LedgerRow.model_validate(dict(row)) for row in reversed(found))

    def get(self, id: str) -> LedgerRow | None:
        """The row of one response, or None."""
        found = self._read(f"{_SELECT} WHERE id = ?", (id,))
        return LedgerRow.model_validate(dict(found[0])) if found else None

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

    def _write(self, row: LedgerRow) -> None:
        values = row.model_dump()
        values["at"] = _utc(row.at)
        with self._connection:  # one transaction
            self._connection.execute(_INSERT, values)

    def _read(self, sql: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        # A connection of its own for each reading: a long report never holds up the writer.
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as reader:
            reader.row_factory = sqlite3.Row
            return reader.execute(sql, values).fetchall()


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
            if version == 0:
                _create(connection)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"{path} cannot be used as a ledger: {error}", hint="choose another path for the ledger"
        ) from None
    if version not in (0, _VERSION):
        connection.close()
        raise ConfigError(
            f"{path} is a ledger of format {version}; this smallfirst reads format {_VERSION}",
            hint="pip install --upgrade smallfirst, or choose another path for the ledger",
        )
    return connection


def _create(connection: sqlite3.Connection) -> None:
    # Not executescript(): that would commit first and so leave the transaction.
    statement = ""
    for line in _SCHEMA.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute(f"PRAGMA user_version = {_VERSION}")
