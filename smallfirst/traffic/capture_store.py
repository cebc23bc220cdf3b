"""The capture store: exchanges in one SQLite file, redacted, bounded in rows and days.

One process writes; any number read meanwhile. A killed writer loses nothing that `append` had returned for.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.data.redaction import redact_body
from smallfirst.traffic.exchange import Exchange

FILE_NAME = "capture.db"
MAX_ROWS, KEEP_DAYS = 200_000, 30
MAX_BYTES = 2_000_000
"""Longest exchange that is kept, as JSON without media."""
_PAGE = 200
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS exchanges "
    "(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, content BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS exchanges_at ON exchanges (at)",
)


class CaptureUnavailable(SmallfirstError):
    """Exchanges could not be written: the disk is full, or the file is not writable. They may be appended again."""

    retryable = True


class CaptureStore:
    """A file of exchanges. Any thread may append; each reader has a connection of its own."""

    def __init__(self, path: Path, *, max_rows: int = MAX_ROWS, keep_days: int = KEEP_DAYS) -> None:
        """Open or create `path`, readable by its owner only. Raise ConfigError if the file cannot be used."""
        self.path, self.max_rows, self._keep = path, max_rows, timedelta(days=keep_days)
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            with self._connection:
                for statement in _SCHEMA:
                    self._connection.execute(statement)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path} cannot keep exchanges: {error}", hint="choose another path") from None

    def append(self, exchanges: Sequence[Exchange]) -> int:
        """Write redacted exchanges; what is above `max_rows` goes, oldest first. Return how many were not too long.

        An id that is there already is left as it is. Raise CaptureUnavailable: then none was written.
        """
        rows = [row for one in exchanges if (row := self._row(one)) is not None]
        try:
            with self._lock, self._connection:
                self._connection.executemany("INSERT OR IGNORE INTO exchanges (id, at, content) VALUES (?, ?, ?)", rows)
                self._connection.execute(
                    "DELETE FROM exchanges WHERE seq <= (SELECT max(seq) FROM exchanges) - ?", (self.max_rows,)
                )
        except sqlite3.OperationalError as error:
            raise CaptureUnavailable(
                f"{self.path} takes no exchange: {error}",
                hint="make room on its disk and see that it can be written to",
            ) from None
        return len(rows)

    def exchanges(self) -> Iterator[Exchange]:
        """Yield the exchanges in the order of writing; what is written or deleted meanwhile is among them or not."""
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as reader:
            query, last = f"SELECT seq, content FROM exchanges WHERE seq > ? ORDER BY seq LIMIT {_PAGE}", 0
            while page := reader.execute(query, (last,)).fetchall():  # a long read would keep the journal from folding
                yield from (Exchange.model_validate(json.loads(zlib.decompress(content))) for _, content in page)
                last = page[-1][0]

    def expire(self, now: datetime | None = None) -> int:
        """Delete the exchanges that are older than `keep_days`, without a trace, and return their number."""
        oldest = _text((now or datetime.now(UTC)) - self._keep)
        with self._lock:
            with self._connection:
                deleted = self._connection.execute("DELETE FROM exchanges WHERE at < ?", (oldest,)).rowcount
            if deleted:  # the journal holds older pages
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return deleted

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._connection.close()

    def _row(self, exchange: Exchange) -> tuple[str, str, bytes] | None:
        bodies = {"request": redact_body(exchange.request), "response": redact_body(exchange.response)}
        values = exchange.model_copy(update=bodies).model_dump(exclude_defaults=True) | {"at": _text(exchange.at)}
        content = json.dumps(values, separators=(",", ":")).encode()
        if len(content) > MAX_BYTES:
            return None
        return exchange.id, _text(exchange.at), zlib.compress(content, 6)


def _text(moment: datetime) -> str:
    """Format with a fixed width, so that order as text is order in time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
