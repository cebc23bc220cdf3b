"""What people wrote, kept apart from the ledger, redacted, and only for so many days.

The ledger is append-only, and a promise to forget cannot be kept there. So texts have a file of their own, found by the
id of the response: personal data is taken out before anything is written, a text is cut at a bound, and a row that is
too old is deleted with its bytes overwritten, whenever something is written or read and once at the start. The price:
what was not harvested within the days is gone, and what `redaction` does not see stays until then.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from smallfirst.data.redaction import redact, redact_json
from smallfirst.errors import ConfigError

KEEP_DAYS = 30
"""Days that texts are kept, if nobody says otherwise."""
MAX_CHARACTERS = 200_000
"""Characters of a question or an answer that are kept; what is longer is not kept at all, since half of a conversation
as JSON is none."""
_AT_ONCE = 500
_TABLE = """
CREATE TABLE IF NOT EXISTS bodies (
    id TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    request_text TEXT,
    answer_text TEXT
) WITHOUT ROWID
"""
_INDEX = "CREATE INDEX IF NOT EXISTS bodies_at ON bodies (at)"


class Body(NamedTuple):
    """Texts of one response, redacted; None for one that was too long."""

    request_text: str | None
    """The messages as JSON."""
    answer_text: str | None
    """The answer."""


class BodyStore:
    """A SQLite file of texts that expire. Any thread may write and read."""

    def __init__(self, path: Path, *, keep_days: int = KEEP_DAYS) -> None:
        """Opens or makes `path`, for its owner only, and deletes what has expired. Raises ConfigError if it cannot."""
        self.path, self._keep = path, timedelta(days=keep_days)
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._connection = sqlite3.connect(path, check_same_thread=False, timeout=10, isolation_level=None)
            # Deleted texts are overwritten with zeros; the journal, which holds pages of before, is deleted as well.
            for statement in ("PRAGMA secure_delete = ON", "PRAGMA journal_mode = DELETE", _TABLE, _INDEX):
                self._connection.execute(statement)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path} cannot keep texts: {error}", hint="choose another path") from None
        self.expire()

    def put(self, id: str, request_text: str | None, answer_text: str | None, *, at: datetime | None = None) -> None:
        """Nothing, once the texts are written down without what `redaction` finds."""
        texts = (_short(request_text), _short(answer_text))
        self.expire()
        with self._lock:
            self._connection.execute(
                "INSERT OR REPLACE INTO bodies VALUES (?, ?, ?, ?)", (id, _utc(at or datetime.now(UTC)), *texts)
            )

    async def put_async(self, id: str, request_text: str | None, answer_text: str | None) -> None:
        """The same without holding up the event loop; done even if the caller is cancelled meanwhile."""
        await asyncio.shield(asyncio.wrap_future(self._writer.submit(self.put, id, request_text, answer_text)))

    def get(self, id: str) -> Body | None:
        """The texts of a response; None if there are none, or no longer."""
        self.expire()
        with self._lock:
            found = self._connection.execute("SELECT request_text, answer_text FROM bodies WHERE id = ?", (id,))
            row = found.fetchone()
        return Body(*row) if row else None

    def many(self, ids: Sequence[str]) -> dict[str, Body]:
        """The texts of those responses that still have some, by id."""
        self.expire()
        found: dict[str, Body] = {}
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            with self._lock:
                rows = self._connection.execute(
                    f"SELECT id, request_text, answer_text FROM bodies WHERE id IN ({marks})", some
                ).fetchall()
            found |= {id: Body(*texts) for id, *texts in rows}
        return found

    def erase(self, id: str) -> bool:
        """Deletes the texts of one response, as its author may ask; false if there were none."""
        with self._lock:
            return self._connection.execute("DELETE FROM bodies WHERE id = ?", (id,)).rowcount > 0

    def expire(self, now: datetime | None = None) -> int:
        """How many texts were too old and are deleted."""
        oldest = _utc((now or datetime.now(UTC)) - self._keep)
        with self._lock:
            return self._connection.execute("DELETE FROM bodies WHERE at < ?", (oldest,)).rowcount

    def close(self) -> None:
        """Waits for texts on their way and closes the file. Safe to call twice."""
        self._writer.shutdown(wait=True)
        self._connection.close()


def _short(text: str | None) -> str | None:
    """The text redacted, value by value where it is JSON, as it is where nothing is found."""
    if text is None or len(text) > MAX_CHARACTERS:
        return None
    found = redact(text)
    if text[:1] in ("[", "{"):
        with suppress(ValueError):
            found = redact_json(text)
    return found.text if found.counts else text


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
