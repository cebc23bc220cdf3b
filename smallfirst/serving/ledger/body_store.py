"""Bodies: the texts of ledger entries, redacted, kept apart from the append-only ledger, and deleted after some days.

What is too old is deleted when the file is opened, and by a timer of the server; reading and writing delete nothing.

An answer has its question and itself as body, an audit the two answers that were compared. The right answer that comes
with feedback was sent to be kept: it is redacted and stays in the ledger.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

from smallfirst.data.redaction import redact, redact_json
from smallfirst.errors import ConfigError
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

KEEP_DAYS = 30
MAX_CHARACTERS = 200_000
"""Longest question or answer that is kept; a longer one is dropped, since half of a conversation is no valid JSON."""
_BATCH = 500
_TABLE = """
CREATE TABLE IF NOT EXISTS bodies (
    id TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    request_text TEXT,
    answer_text TEXT
) WITHOUT ROWID
"""
_INDEX = "CREATE INDEX IF NOT EXISTS bodies_at ON bodies (at)"
_CHECKED = "CREATE TABLE IF NOT EXISTS checked (at TEXT NOT NULL)"
"""One row: the time of the last deletion, by a clock that was trusted."""
MAX_GRACE = timedelta(days=1)
"""Longest time for which nothing is deleted after the clock has jumped, or the file was not open for long."""

E = TypeVar("E", LedgerRow, AttemptRow, AuditRow, DraftRow, FeedbackRow, StateRow, ExpenseRow)


class Body(NamedTuple):
    """Texts of one entry; None for one that was too long."""

    request_text: str | None
    """The messages as JSON; of an audit, the draft as one message."""
    answer_text: str | None
    """The answer; of an audit, the answer that the draft was compared with."""


def body_id(entry: Entry) -> str:
    """Return the id under which an entry's body is stored; empty if entries of its kind have none."""
    match entry:
        case LedgerRow():
            return entry.id
        case AuditRow():
            return f"{entry.id}/{entry.judged_by}"
    return ""


def body_of(entry: Entry) -> Body | None:
    """Return the texts that an entry carries, not redacted yet; None if it carries none."""
    match entry:
        case LedgerRow() if entry.request_text is not None or entry.answer_text is not None:
            return Body(entry.request_text, entry.answer_text)
        case AuditRow() if entry.draft is not None or entry.other is not None:
            draft = None if entry.draft is None else json.dumps([["assistant", entry.draft]], ensure_ascii=False)
            return Body(draft, entry.other)
    return None


def columns_without_body(entry: Entry) -> dict[str, object]:
    """Return the columns that the ledger stores differently from the entry."""
    match entry:
        case LedgerRow():
            return {"request_text": None, "answer_text": None}
        case AuditRow():
            return {"draft": None, "other": None}
        case FeedbackRow() if entry.answer is not None:
            return {"answer": redact(entry.answer).text}
    return {}


def with_body(entry: E, body: Body | None) -> E:
    """Return the entry with its body. An entry of an older ledger, which has texts itself, stays as it is."""
    if body is None:
        return entry
    if isinstance(entry, LedgerRow) and entry.request_text is None:
        return entry.model_copy(update=body._asdict())
    if isinstance(entry, AuditRow) and entry.draft is None:
        draft = None if body.request_text is None else json.loads(body.request_text)[0][1]
        return entry.model_copy(update={"draft": draft, "other": body.answer_text})
    return entry


class BodyStore:
    """A SQLite file of texts that expire. Any thread may write and read."""

    def __init__(self, path: Path, *, keep_days: int = KEEP_DAYS) -> None:
        """Open or create `path`, readable by its owner only, and delete what has expired. Raise ConfigError."""
        self.path, self._keep = path, timedelta(days=keep_days)
        self._lock = threading.Lock()
        self._jumped: tuple[datetime, float] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._connection = sqlite3.connect(path, check_same_thread=False, timeout=10, isolation_level=None)
            # Deleted texts are overwritten with zeros; the journal, which holds older pages, is deleted as well.
            for statement in ("PRAGMA secure_delete = ON", "PRAGMA journal_mode = DELETE", _TABLE, _INDEX, _CHECKED):
                self._connection.execute(statement)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path} cannot keep texts: {error}", hint="choose another path") from None
        self.expire()

    def put(self, id: str, body: Body, *, at: datetime | None = None) -> None:
        self.put_all([(id, body)], at=at)

    def put_all(self, bodies: Sequence[tuple[str, Body]], *, at: datetime | None = None) -> None:
        """Write bodies in one transaction."""
        now = utc_text(at or datetime.now(UTC))
        rows = [(id, now, *map(_redacted, body)) for id, body in bodies]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO bodies VALUES (?, ?, ?, ?)", rows)

    def get(self, id: str) -> Body | None:
        """Return a body; None if there is none, or none any longer."""
        return self.many([id]).get(id)

    def many(self, ids: Sequence[str]) -> dict[str, Body]:
        oldest = utc_text(datetime.now(UTC) - self._keep)
        found: dict[str, Body] = {}
        for start in range(0, len(ids), _BATCH):
            some = ids[start : start + _BATCH]
            marks = ", ".join("?" * len(some))
            with self._lock:
                rows = self._connection.execute(
                    f"SELECT id, request_text, answer_text FROM bodies WHERE at >= ? AND id IN ({marks})",
                    (oldest, *some),
                ).fetchall()
            found |= {id: Body(*texts) for id, *texts in rows}
        return found

    def erase(self, id: str) -> bool:
        """Delete a body, as its author may ask; return False if there was none."""
        with self._lock:
            return self._connection.execute("DELETE FROM bodies WHERE id = ?", (id,)).rowcount > 0

    def expire(self, now: datetime | None = None, *, running_s: float | None = None) -> int:
        """Delete the bodies that are too old and return their number.

        After a jump of the clock by more than a quarter of the days, or as long a pause, nothing is deleted until the
        clock has gone on for a while; `running_s` is a clock that never jumps, in seconds.
        """
        now, running_s = now or datetime.now(UTC), time.monotonic() if running_s is None else running_s
        if not self._is_trusted(now, running_s):
            return 0
        oldest, deleted, latest = utc_text(now - self._keep), 0, utc_text(now)
        with self._transaction() as connection:
            connection.execute("DELETE FROM checked")
            connection.execute("INSERT INTO checked VALUES (?)", (latest,))
            # Written while the clock was ahead: their days begin now.
            connection.execute("UPDATE bodies SET at = ? WHERE at > ?", (latest, utc_text(now + MAX_GRACE)))
        while True:  # in parts, between which others write
            with self._transaction() as connection:
                found = connection.execute(
                    "DELETE FROM bodies WHERE id IN (SELECT id FROM bodies WHERE at < ? LIMIT ?)", (oldest, _BATCH)
                ).rowcount
            deleted += found
            if found < _BATCH:
                return deleted

    def _is_trusted(self, now: datetime, running_s: float) -> bool:
        with self._lock:
            last = self._connection.execute("SELECT coalesce((SELECT at FROM checked), (SELECT max(at) FROM bodies))")
            text = last.fetchone()[0]
        before = datetime.fromisoformat(text) if text else now
        if abs(now - before) <= self._keep / 4 or not self._keep:
            self._jumped = None
            return True
        grace = min(self._keep / 4, MAX_GRACE)
        if self._jumped is None or abs(now - self._jumped[0] - timedelta(seconds=running_s - self._jumped[1])) > grace:
            self._jumped = now, running_s  # the first time, or another jump
        return running_s - self._jumped[1] >= grace.total_seconds()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._connection.close()


def _redacted(text: str | None) -> str | None:
    """Redact a text, value by value if it is JSON; return one without findings unchanged."""
    if text is None or len(text) > MAX_CHARACTERS:
        return None
    found = redact(text)
    if text[:1] in ("[", "{"):
        with suppress(ValueError):
            found = redact_json(text)
    return found.text if found.counts else text


def utc_text(moment: datetime) -> str:
    """Format with a fixed width, so that order as text is order in time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
