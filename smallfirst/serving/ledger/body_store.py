"""Bodies: the texts of ledger entries, redacted, kept apart from the append-only ledger, and deleted after some days.

What is too old is deleted when the file is opened, and by a timer of the server; reading and writing delete nothing.

An answer has its question and itself as body, an audit the two answers that were compared, a draft that waits for a
person itself and the answer beside it. The right answer that comes with feedback was sent to be kept: it is redacted
and stays in the ledger.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from smallfirst.data.redaction import redact
from smallfirst.errors import ConfigError
from smallfirst.serving.ledger.database import Database, open_file, reason, without_nul
from smallfirst.serving.ledger.rows import (
    AttemptRow,
    AuditRow,
    DraftRow,
    Entry,
    ExpenseRow,
    FeedbackRow,
    LedgerRow,
    ShadowRow,
    StateRow,
)
from smallfirst.serving.ledger.tables import BODIES, CHECKED, TEXTS

KEEP_DAYS = 30
MAX_CHARACTERS = 200_000
"""Longest question or answer that is kept; a longer one is dropped, since half of a conversation is no valid JSON."""
_BATCH = 500
MAX_GRACE = timedelta(days=1)
"""Longest time for which nothing is deleted after the clock has jumped, or the file was not open for long."""

E = TypeVar("E", LedgerRow, AttemptRow, AuditRow, DraftRow, ShadowRow, FeedbackRow, StateRow, ExpenseRow)


class Body(NamedTuple):
    """Texts of one entry; None for one that was too long."""

    request_text: str | None
    """The messages as JSON; of an audit, the draft as one message."""
    answer_text: str | None
    """The answer; of an audit, the answer that the draft was compared with."""


_FIELDS: dict[type[Entry], tuple[str, str]] = {
    LedgerRow: ("request_text", "answer_text"),
    AuditRow: ("draft", "other"),
    DraftRow: ("draft", "other"),
}
"""Fields of an entry that are its body."""


def body_id(entry: Entry) -> str:
    """Return the id under which an entry's body is stored; empty if entries of its kind have none."""
    if isinstance(entry, AuditRow):
        return f"{entry.id}/audit"
    if isinstance(entry, DraftRow):
        return f"{entry.id}/draft"
    return entry.id if isinstance(entry, LedgerRow) else ""


def body_of(entry: Entry) -> Body | None:
    """Return the texts that an entry carries, not redacted yet; None if it carries none."""
    if (names := _FIELDS.get(type(entry))) is None:
        return None
    first, answer = (getattr(entry, name) for name in names)
    if first is not None and isinstance(entry, AuditRow | DraftRow):
        first = json.dumps([["assistant", first]], ensure_ascii=False)
    return None if first is None and answer is None else Body(first, answer)


def columns_without_body(entry: Entry) -> dict[str, object]:
    """Return the columns that the ledger stores differently from the entry."""
    if isinstance(entry, FeedbackRow) and entry.answer is not None:
        return {"answer": redact(entry.answer).text}
    return dict.fromkeys(_FIELDS.get(type(entry), ()))


def with_body(entry: E, body: Body | None) -> E:
    """Return the entry with its body."""
    if body is None:
        return entry
    first, answer = body
    if first is not None and isinstance(entry, AuditRow | DraftRow):
        first = json.loads(first)[0][1]
    return entry.model_copy(update=dict(zip(_FIELDS[type(entry)], (first, answer), strict=True)))


class BodyStore:
    """A SQLite file, or tables of PostgreSQL, with texts that expire. Any thread may write and read."""

    def __init__(self, place: Path | Database, *, keep_days: int = KEEP_DAYS) -> None:
        """Open or create a file, readable by its owner only, and delete what has expired. Raise ConfigError."""
        self._keep = timedelta(days=keep_days)
        self._lock = threading.Lock()
        self._jumped: tuple[datetime, float] | None = None
        # Deleted texts are overwritten with zeros; the journal, which holds older pages, is deleted as well.
        pragmas = ("secure_delete = ON", "journal_mode = DELETE")
        self.database = open_file(place, *pragmas) if isinstance(place, Path) else place
        self._writer, self.path = self.database.writer, self.database.path
        try:
            with self._writer.begin() as connection:
                BODIES.create_all(connection)
        except (sqlite3.Error, SQLAlchemyError) as error:
            raise ConfigError(
                f"{self.database.place} cannot keep texts: {reason(error)}", hint="choose another path"
            ) from None
        self.expire()

    def put(self, bodies: Sequence[tuple[str, Body]], *, at: datetime | None = None) -> None:
        """Write bodies in one transaction."""
        now, insert = at or datetime.now(UTC), self.database.insert(TEXTS)
        later = {name: insert.excluded[name] for name in ("at", "request_text", "answer_text")}
        rows = [{"id": id, "at": now, **Body(*map(_redacted, body))._asdict()} for id, body in bodies]
        with self._writer.begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=later), rows)

    def get(self, ids: Sequence[str]) -> dict[str, Body]:
        """Return by id the bodies that are there still."""
        oldest = datetime.now(UTC) - self._keep
        found: dict[str, Body] = {}
        wanted = select(TEXTS.c.id, TEXTS.c.request_text, TEXTS.c.answer_text).where(TEXTS.c.at >= oldest)
        with self.database.reader.connect() as connection:
            for start in range(0, len(ids), _BATCH):
                for id, *texts in connection.execute(wanted.where(TEXTS.c.id.in_(ids[start : start + _BATCH]))):
                    found[id] = Body(*texts)
        return found

    def expire(self, now: datetime | None = None, *, running_s: float | None = None) -> int:
        """Delete the bodies that are too old and return their number.

        After a jump of the clock by more than a quarter of the days, or as long a pause, nothing is deleted until the
        clock has gone on for a while; `running_s` is a clock that never jumps, in seconds.
        """
        now, running_s = now or datetime.now(UTC), time.monotonic() if running_s is None else running_s
        if not self._is_trusted(now, running_s):
            return 0
        oldest, deleted = now - self._keep, 0
        with self._writer.begin() as connection:
            connection.execute(CHECKED.delete())
            connection.execute(CHECKED.insert().values(at=now))
            # Written while the clock was ahead: their days begin now.
            connection.execute(TEXTS.update().values(at=now).where(TEXTS.c.at > now + MAX_GRACE))
        old = TEXTS.delete().where(TEXTS.c.id.in_(select(TEXTS.c.id).where(TEXTS.c.at < oldest).limit(_BATCH)))
        while True:  # in parts, between which others write
            with self._writer.begin() as connection:
                found = connection.execute(old).rowcount
            deleted += found
            if found < _BATCH:
                return deleted

    def _is_trusted(self, now: datetime, running_s: float) -> bool:
        with self.database.reader.connect() as connection:
            last = connection.execute(select(func.max(CHECKED.c.at))).scalar()
            before = last or connection.execute(select(func.max(TEXTS.c.at))).scalar() or now
        if abs(now - before) <= self._keep / 4 or not self._keep:
            self._jumped = None
            return True
        grace = min(self._keep / 4, MAX_GRACE)
        with self._lock:
            jumped = self._jumped
            if jumped is None or abs(now - jumped[0] - timedelta(seconds=running_s - jumped[1])) > grace:
                self._jumped = jumped = now, running_s  # the first time, or another jump
        return running_s - jumped[1] >= grace.total_seconds()

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self.database.close()


def _redacted(text: str | None) -> str | None:
    """Redact a text, value by value if it is JSON; None for one that is too long."""
    return None if text is None or len(text) > MAX_CHARACTERS else redact(without_nul(text)).text
