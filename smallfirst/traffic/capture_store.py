"""The capture store: exchanges in one SQLite file, redacted, bounded in rows and days, encrypted if a key is given.

One process writes; any number read meanwhile. A killed writer loses nothing that `append` had returned for.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from smallfirst.base.errors import ConfigError, SmallfirstError, as_missing_extra
from smallfirst.data.redaction import redact_body
from smallfirst.traffic.exchange import Exchange

FILE_NAME = "capture.db"
KEY_ENV = "SMALLFIRST_CAPTURE_KEY"
"""Variable of the environment that holds the key, unless the settings name another."""
MAX_ROWS, KEEP_DAYS = 200_000, 30
MAX_BYTES = 2_000_000
"""Longest exchange that is kept, as JSON without media."""
_PLAIN, _ENCRYPTED = b"\0", b"\1"
_NONCE, _PAGE = 12, 200
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS exchanges "
    "(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, content BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS exchanges_at ON exchanges (at)",
    "CREATE TABLE IF NOT EXISTS encryption (salt BLOB NOT NULL, key_check BLOB NOT NULL)",
)


class CaptureUnavailable(SmallfirstError):
    """Exchanges could not be written: the disk is full, or the file is not writable. They may be appended again."""

    retryable = True


class Cipher:
    """AES-256-GCM under a key that scrypt derives from any text. Each content is bound to its id: no other reads it."""

    def __init__(self, key: str, salt: bytes) -> None:
        """Derive the key, which takes about 50 ms. Raise MissingExtra."""
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError as error:
            raise as_missing_extra(error) from None
        self._key = hashlib.scrypt(key.encode(), salt=salt, n=2**14, r=8, p=1, dklen=64)
        self._aead = AESGCM(self._key[:32])

    def encrypt(self, content: bytes, id: str) -> bytes:
        """Return a random nonce of 12 bytes, the encrypted content, and a tag of 16."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._aead.encrypt(nonce, content, id.encode())

    def decrypt(self, content: bytes, id: str) -> bytes:
        """Return the content. Raise ConfigError if it was changed or belongs to another id."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(content[:_NONCE], content[_NONCE:], id.encode())
        except InvalidTag:
            raise ConfigError(f"exchange {id} cannot be decrypted: its content was changed") from None

    def check(self) -> bytes:
        """Return what tells one key from another without saying it."""
        return hmac.digest(self._key[32:], b"smallfirst capture", "sha256")


def is_store(path: Path) -> bool:
    """Return True if a CaptureStore wrote the file."""
    if not path.is_file() or path.open("rb").read(16) != b"SQLite format 3\0":
        return False
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as reader:
        return {"exchanges", "encryption"} <= {name for (name,) in reader.execute("SELECT name FROM sqlite_master")}


class CaptureStore:
    """A file of exchanges. Any thread may append; each reader has a connection of its own."""

    def __init__(
        self, path: Path, *, max_rows: int = MAX_ROWS, keep_days: int = KEEP_DAYS, key: str | None = None
    ) -> None:
        """Open or create `path`, readable by its owner only; with `key`, any text, its contents are encrypted.

        A file without encryption is encrypted when it is first opened with a key. Raise ConfigError if the key is
        missing or another one, or the file cannot be used.
        """
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
        self._cipher = self._cipher_of(key)

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
            query, last = f"SELECT seq, id, content FROM exchanges WHERE seq > ? ORDER BY seq LIMIT {_PAGE}", 0
            while page := reader.execute(query, (last,)).fetchall():  # a long read would keep the journal from folding
                yield from (self._exchange(id, content) for _, id, content in page)
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
        packed = zlib.compress(content, 6)
        sealed = _ENCRYPTED + self._cipher.encrypt(packed, exchange.id) if self._cipher else _PLAIN + packed
        return exchange.id, _text(exchange.at), sealed

    def _exchange(self, id: str, content: bytes) -> Exchange:
        plain = content[1:]
        if content[:1] == _ENCRYPTED:
            if self._cipher is None:  # encrypted by another process since this one has opened it
                raise self._key_needed()
            plain = self._cipher.decrypt(plain, id)
        return Exchange.model_validate(json.loads(zlib.decompress(plain)))

    def _key_needed(self) -> ConfigError:
        return ConfigError(f"{self.path} is encrypted", hint=f"set {KEY_ENV} to its key")

    def _cipher_of(self, key: str | None) -> Cipher | None:
        found = self._connection.execute("SELECT salt, key_check FROM encryption").fetchone()
        if found is None and key:
            salt = secrets.token_bytes(16)
            cipher = Cipher(key, salt)
            with self._connection:
                for id, content in self._connection.execute("SELECT id, content FROM exchanges").fetchall():
                    sealed = _ENCRYPTED + cipher.encrypt(content[1:], id)
                    self._connection.execute("UPDATE exchanges SET content = ? WHERE id = ?", (sealed, id))
                self._connection.execute("INSERT INTO encryption VALUES (?, ?)", (salt, cipher.check()))
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return cipher
        if found is None:
            return None
        if not key:
            raise self._key_needed()
        cipher = Cipher(key, found[0])
        if cipher.check() != found[1]:
            raise ConfigError(f"{self.path} is encrypted with another key", hint=f"set {KEY_ENV} to the one it has")
        return cipher


def _text(moment: datetime) -> str:
    """Format with a fixed width, so that order as text is order in time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
