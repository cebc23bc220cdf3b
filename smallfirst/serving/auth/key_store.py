"""The keyring: who may ask what, how often and until when, in one JSON file that the server only reads.

A look at the file's time, size and inode goes before every request, about 2 microseconds, so a key that is revoked is
refused from the next request on; requests that are under way end as they began. The file is replaced whole, under a
lock, so nobody reads half of it. Once a server has seen a key it asks for one until it ends, even if the file goes
away. What the server learns, the day a key was last used, is in a second file: the first one needs no writer but the
command line. The price of a file: each change writes all of it, which suits hundreds of keys, not millions.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AwareDatetime, Field

from smallfirst.errors import ConfigError
from smallfirst.records import Record, parse_record
from smallfirst.serving.auth.keys import hash_key, new_id, new_key

__all__ = ["FILE_NAME", "ApiKey", "KeyStoreUnreadable", "KeyStore", "KeyPolicy", "KeyState"]

FILE_NAME = "keys.json"
"""The keyring inside the state folder."""
MAX_KEYS = 10_000
"""Keys of one file, revoked ones included."""

KeyState = Literal["active", "expired", "revoked"]
_Limit = Annotated[int, Field(ge=1, le=1_000_000_000)]
_Model = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/@:-]{1,128}$")]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_log = logging.getLogger("smallfirst.serving")


class KeyStoreUnreadable(Exception):
    """The file is there and cannot be read; nobody is let in by it until it can."""


class KeyPolicy(Record):
    """What a key allows."""

    role: Literal["user", "admin"] = "user"
    """`admin` also sees other people's affairs: the queue, the Routers' states, metrics."""
    models: tuple[_Model, ...] = ()
    """Served names that may be asked for; empty = all."""
    requests_per_minute: _Limit | None = None
    """Most requests a minute; None = no limit of its own."""
    tokens_per_minute: _Limit | None = None
    """Most tokens a minute, read and written together; None = no limit of its own."""
    max_in_flight: _Limit | None = None
    """Most requests at once; None = no limit of its own."""
    expires_on: date | None = None
    """First day (UTC) on which the key opens nothing any more; None = never."""


class ApiKey(Record):
    """One key as it is kept: everything but the key itself."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    """The part of the key that names it."""
    name: str = Field(pattern=rf"^{_NAME.pattern}$")
    """What the operator calls it."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the whole key."""
    created_at: AwareDatetime
    """When it was made."""
    revoked_at: AwareDatetime | None = None
    """When it was revoked."""
    terms: KeyPolicy = KeyPolicy()
    """What it allows."""

    def state(self, today: date | None = None) -> KeyState:
        """Whether it opens anything on `today` (UTC)."""
        if self.revoked_at is not None:
            return "revoked"
        ends = self.terms.expires_on
        return "expired" if ends is not None and (today or _today()) >= ends else "active"


class _File(Record):
    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = Field(default=(), max_length=MAX_KEYS)


_Seen = tuple[int, int, int]


class KeyStore:
    """The keys in one file. Reading is for one thread; any number of processes may change the file."""

    def __init__(self, path: Path) -> None:
        """The keyring at `path`, which need not be there yet."""
        self.path = path
        self._seen: _Seen | None = None
        self._by_id: Mapping[str, ApiKey] = {}
        self._readable = True
        self._demands = False
        self._used: dict[str, str] = {}

    @property
    def demands_keys(self) -> bool:
        """True if a request needs a key: the file has, or had since this object was made, at least one."""
        self._look()
        return self._demands

    def find(self, id: str) -> ApiKey | None:
        """The key of this id as the file has it now. Raises KeysUnreadable."""
        self._look()
        if not self._readable:
            raise KeyStoreUnreadable
        return self._by_id.get(id)

    def entries(self) -> tuple[ApiKey, ...]:
        """All keys, oldest first. Raises ConfigError if the file cannot be read."""
        return _read(self.path).keys

    def create(self, name: str, terms: KeyPolicy) -> tuple[ApiKey, str]:
        """A new key and its text, which is kept nowhere. Raises ConfigError for a name that is taken or unfit."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a key's name", hint="use 1 to 64 of A-Z a-z 0-9 . _ @ -")
        with _locked(self.path):
            kept = _read(self.path).keys
            if any(key.name == name and key.revoked_at is None for key in kept):
                raise ConfigError(f'there is a key called "{name}"', hint=f"smallfirst keys revoke {name}")
            if len(kept) >= MAX_KEYS:
                raise ConfigError(f"{self.path} holds {MAX_KEYS:,} keys already", hint="start another file")
            secret = new_key(id := new_id())
            key = ApiKey(id=id, name=name, sha256=hash_key(secret), created_at=datetime.now(UTC), terms=terms)
            _write(self.path, _File(keys=(*kept, key)).model_dump_json(indent=2))
        return key, secret

    def revoke(self, name_or_id: str) -> ApiKey:
        """The key, revoked from now on. Raises ConfigError if no active or expired key has this name or id."""
        with _locked(self.path):
            kept = _read(self.path).keys
            found = [key for key in kept if name_or_id in (key.name, key.id) and key.revoked_at is None]
            if not found:
                known = ", ".join(key.name for key in kept if key.revoked_at is None) or "none"
                raise ConfigError(
                    f'no key "{name_or_id[:64]}" is in force; in force: {known}', hint="smallfirst keys list"
                )
            revoked = found[0].model_copy(update={"revoked_at": datetime.now(UTC)})
            changed = tuple(revoked if key.id == revoked.id else key for key in kept)
            _write(self.path, _File(keys=changed).model_dump_json(indent=2))
        return revoked

    def last_used(self) -> Mapping[str, str]:
        """By id, the day (UTC, ISO 8601) on which a key was last used; ids never used are missing."""
        try:
            found = json.loads(self._used_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(id): str(day) for id, day in found.items()} if isinstance(found, dict) else {}

    def used(self, id: str) -> None:
        """Nothing; the day is written down once a day. A disk that takes nothing stops nobody."""
        today = _today().isoformat()
        if self._used.get(id) == today:
            return
        self._used[id] = today
        try:
            with _locked(self._used_path):
                _write(self._used_path, json.dumps({**self.last_used(), id: today}, indent=1))
        except OSError as error:
            _log.warning("the last use of key %s was not written down: %s", id, error.strerror)

    @property
    def _used_path(self) -> Path:
        return self.path.with_name(f"{self.path.stem}-used.json")

    def _look(self) -> None:
        """Read the file again if it is another one than last time."""
        try:
            at = os.stat(self.path)
            seen: _Seen | None = (at.st_mtime_ns, at.st_size, at.st_ino)
        except OSError:
            seen = None
        if seen == self._seen:
            return
        self._seen = seen
        try:
            kept = _read(self.path).keys
        except ConfigError as error:
            _log.error("the keyring cannot be read, nobody gets in by it: %s", " ".join(str(error).split())[:300])
            self._readable, self._demands = False, True
            return
        self._by_id, self._readable = {key.id: key for key in kept}, True
        self._demands |= bool(kept)


def _today() -> date:
    return datetime.now(UTC).date()


def _read(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _File()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    try:
        # From JSON, where a date is a text; the first try is for speed, the second for the words of its error.
        return _File.model_validate_json(text)
    except pydantic.ValidationError:
        try:
            return parse_record(_File, json.loads(text), where=str(path))
        except ValueError:
            raise ConfigError(f"{path} is no keyring: not JSON", hint="take it out of the way, or mend it") from None


def _write(path: Path, text: str) -> None:
    """Replace the file whole, for its owner only."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
        try:
            # Made with mode 0600, whatever the umask is.
            draft.write(text)
            draft.flush()
            os.fsync(draft.fileno())
            os.replace(draft.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft.name)
            raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with the file among processes; the kernel takes the lock back however a process ends."""
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
