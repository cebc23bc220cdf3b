"""API keys: 256 random bits each, stored as SHA-256 in one JSON file, or beside the ledger for servers on any machine.

What a key makes (files, jobs, models, rows of the ledger) belongs to its owner, which a rotated key keeps. A revoked
key is refused from the next request on, by servers that read them beside the ledger after REFRESH_S. Once a server has
seen a key it asks for one until it ends, even if the file goes away. The days on which keys were last used are kept
apart, so that keys have no writer but the command line.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AwareDatetime, Field

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.paths import home, ledger_place, state_folder
from smallfirst.records import Record, parse_record
from smallfirst.serving.auth.key_storage import FileState
from smallfirst.serving.ledger.database import open_database
from smallfirst.serving.ledger.shared_state import SharedState

if TYPE_CHECKING:
    from smallfirst.serving.ledger.ledger import Ledger

FILE_NAME = "keys.json"
IN_LEDGER = "ledger"
"""The place of keys that are in the ledger's database."""
REFRESH_S = 1.0
"""Seconds after which keys of a database are read again, before the next request."""
MAX_KEYS = 10_000
"""Keys of one file, revoked ones included."""

KeyState = Literal["active", "expired", "revoked"]
_Limit = Annotated[int, Field(ge=1, le=1_000_000_000)]
_Model = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/@:-]{1,128}$")]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_WITH_ID = re.compile(r"sf-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_KEYS, _USED = "keys", "keys used"
_log = logging.getLogger("smallfirst.serving")
R = TypeVar("R")
_place: ContextVar[str] = ContextVar("place of the keys", default="")


class KeyStoreUnreadable(Exception):
    """The file exists and cannot be read; its keys open nothing until it can."""


class KeyPolicy(Record):
    """What a key allows."""

    role: Literal["user", "judge", "admin"] = "user"
    """`judge` also sees the review queue, and its verdicts on anybody's answers count where chance drew them; `admin`
    also sees the Routers' states and metrics."""
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
    """One key as it is stored: everything but the key itself."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    """The part of the key that names it."""
    name: str = Field(pattern=rf"^{_NAME.pattern}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the whole key."""
    owner: str = Field(default_factory=lambda key: key["sha256"], pattern=r"^([0-9a-f]{12}|[0-9a-f]{64})$")
    """Id of what the key makes and may see; the hash of a key that was stored before keys had owners."""
    created_at: AwareDatetime
    revoked_at: AwareDatetime | None = None
    ends_at: AwareDatetime | None = None
    """End of the grace of a rotated key."""
    policy: KeyPolicy = KeyPolicy()

    @property
    def shown_owner(self) -> str:
        """The owner for listings, which show no hash of a key."""
        return self.owner[:12]

    def state(self, today: date | None = None) -> KeyState:
        """Return whether it opens anything on `today` (UTC)."""
        if self.revoked_at is not None:
            return "revoked"
        if self.ends_at is not None and datetime.now(UTC) >= self.ends_at:
            return "expired"
        ends = self.policy.expires_on
        return "expired" if ends is not None and (today or _today()) >= ends else "active"


Keys = tuple[ApiKey, ...]


class _File(Record):
    version: Literal[1] = 1
    keys: Keys = Field(default=(), max_length=MAX_KEYS)


class KeyStore:
    """The keys in one place. Reading is for one thread; any number of processes may change them."""

    def __init__(self, path: Path) -> None:
        self._state: FileState | SharedState = FileState(path)
        self._version: object = None
        self._by_id: Mapping[str, ApiKey] = {}
        self._readable = True
        self._key_required = self._looked = False
        self._used: dict[str, str] = {}
        self._read_at_s = float("-inf")
        self._reading = asyncio.Lock()

    @classmethod
    def beside(cls, ledger: Ledger) -> KeyStore:
        """Return the keys in the database of a ledger."""
        return cls._in(ledger.shared)

    @classmethod
    def _in(cls, state: SharedState) -> KeyStore:
        store = cls(Path())
        store._state = state
        return store

    @property
    def place(self) -> str:
        """The file, or the database."""
        return self._state.place

    async def refresh(self) -> None:
        """Read keys of a database again if that is longer ago than REFRESH_S."""
        if isinstance(self._state, FileState) or time.monotonic() - self._read_at_s <= REFRESH_S:
            return
        async with self._reading:
            if (now := time.monotonic()) - self._read_at_s > REFRESH_S:
                await asyncio.to_thread(self._reload)
                self._read_at_s = now

    @property
    def key_required(self) -> bool:
        """True if a request needs a key: the file has, or had since this object was made, at least one."""
        self._look()
        return self._key_required

    def find(self, id: str) -> ApiKey | None:
        """Return the key of this id as it is stored now, or was at the last `refresh`. Raise KeyStoreUnreadable."""
        self._look()
        if not self._readable:
            raise KeyStoreUnreadable
        return self._by_id.get(id)

    def entries(self) -> tuple[ApiKey, ...]:
        """Return all keys, oldest first. Raise ConfigError if they cannot be read, LedgerAway without a connection."""
        return _parsed(self._state.get(_KEYS), self.place).keys

    def create(self, name: str, policy: KeyPolicy, *, owner: str | None = None) -> tuple[ApiKey, str]:
        """Return a new key and its text, which is stored nowhere. Raise ConfigError for a taken or invalid name.

        The key is its own owner, or has that of another key: `owner` is a key's name, id, owner or hash.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a key's name", hint="use 1 to 64 of A-Z a-z 0-9 . _ @ -")

        def change(stored: Keys) -> tuple[Keys, tuple[ApiKey, str]]:
            if any(key.name == name and key.revoked_at is None for key in stored):
                raise ConfigError(f'there is a key called "{name}"', hint=f"smallfirst keys rotate {name}")
            key, secret = _make_key(name, policy, None if owner is None else _find_owner(stored, owner))
            return (*stored, key), (key, secret)

        return self._replace(change)

    def rotate(self, name_or_id: str, *, grace_s: float = 0) -> tuple[ApiKey, str]:
        """Return a new key with the name, owner and policy of another, which ends now or after `grace_s` seconds.

        Raise ConfigError if no key of this name or id is active, or if it was rotated already.
        """
        now = datetime.now(UTC)

        def change(stored: Keys) -> tuple[Keys, tuple[ApiKey, str]]:
            old = _in_force(stored, name_or_id)[-1]
            if old.state() == "expired" or old.ends_at is not None:
                state = "was rotated" if old.ends_at else "has expired"
                hint = f"smallfirst keys revoke {old.id}; smallfirst keys create NAME --owner {old.id}"
                raise ConfigError(f"the key {old.id} ({old.name}) {state}", hint=hint)
            key, secret = _make_key(old.name, old.policy, old.owner)
            ends = {"ends_at": now + timedelta(seconds=grace_s)} if grace_s > 0 else {"revoked_at": now}
            ended = old.model_copy(update=ends)
            return (*(ended if each.id == old.id else each for each in stored), key), (key, secret)

        return self._replace(change)

    def revoke(self, name_or_id: str) -> ApiKey:
        """Revoke the keys of a name, or the key of an id, and return the newest. Raise ConfigError if none is in force.

        Expired keys are in force too: they keep their name.
        """

        def change(stored: Keys) -> tuple[Keys, ApiKey]:
            found = {key.id for key in _in_force(stored, name_or_id)}
            revoked = {"revoked_at": datetime.now(UTC)}
            keys = tuple(key.model_copy(update=revoked) if key.id in found else key for key in stored)
            return keys, next(key for key in reversed(keys) if key.id in found)

        return self._replace(change)

    def move_to(self, other: KeyStore) -> int:
        """Move all keys of this file to another place, which has none, and return their number. Raise ConfigError."""
        assert isinstance(self._state, FileState)
        keys = self.entries()

        def change(stored: Keys) -> tuple[Keys, None]:
            if stored:
                raise ConfigError(f"{other.place} has keys already", hint="smallfirst keys list")
            return keys, None

        if not keys:
            raise ConfigError(f"no keys in {self.place}")
        other._replace(change)
        path = Path(self.place)
        path.rename(path.with_name(f"{path.stem}-moved.json"))
        return len(keys)

    def last_used(self) -> Mapping[str, str]:
        """Return, by id, the day (UTC, ISO 8601) on which a key was last used; ids never used are missing."""
        with suppress(ConfigError):
            return _days(self._state.get(_USED))
        return {}

    def used(self, id: str) -> None:
        """Note that a key was used today; a disk that cannot be written to stops nobody."""
        today = _today().isoformat()
        if self._used.get(id) != today:
            self._used[id] = today
            if isinstance(self._state, FileState):
                self._note_use(id, today)
            else:  # no request waits for a database
                threading.Thread(target=self._note_use, args=(id, today), name="last use", daemon=True).start()

    def _note_use(self, id: str, today: str) -> None:
        try:
            self._state.replace(_USED, lambda days, _: ({**_days(days), id: today}, None))
        except (OSError, SmallfirstError) as error:
            _log.warning("the last use of key %s was not noted: %s", id, error.args[-1])

    def _replace(self, change: Callable[[Keys], tuple[Keys, R]]) -> R:
        """Replace all keys by what `change` makes of them, and return its result."""

        def of_value(value: Any, _: float) -> tuple[Any, R]:
            keys, result = change(_parsed(value, self.place).keys)
            if len(keys) > MAX_KEYS:
                raise ConfigError(f"{self.place} holds {MAX_KEYS:,} keys already", hint="start another file")
            return _File(keys=keys).model_dump(mode="json"), result

        return self._state.replace(_KEYS, of_value)

    def _look(self) -> None:
        if isinstance(self._state, FileState) or not self._looked:
            self._reload()

    def _reload(self) -> None:
        self._looked = True
        try:
            version = self._state.version(_KEYS)
            if version == self._version:
                return
            stored = self.entries()
        except SmallfirstError as error:
            _log.error("the key store cannot be read, its keys open nothing: %s", " ".join(str(error).split())[:300])
            self._readable, self._key_required = False, True
            self._version = version if isinstance(error, ConfigError) else None
            return
        self._version = version
        self._by_id, self._readable = {key.id: key for key in stored}, True
        self._key_required |= bool(stored)


@contextmanager
def keys_at(place: str) -> Iterator[None]:
    """Within the block the keys are at this place, if it is not empty, as in `home_key_store`."""
    token = _place.set(place or _place.get())
    try:
        yield
    finally:
        _place.reset(token)


def keys_place() -> str:
    """Return the place that was chosen for keys, by `keys_at` or `SMALLFIRST_KEYS`; empty if none was."""
    return _place.get() or os.environ.get("SMALLFIRST_KEYS", "").strip()


def home_key_store(place: str = "", *, write: bool = False, state: SharedState | None = None) -> KeyStore:
    """Return the keys at a place, by default that of `keys_place`: a file, or `ledger` for the ledger's database.

    Without either: the file of the state folder, which is created if keys are to be written; where the ledger is in
    PostgreSQL its database, unless it has no keys and the file has some. `state` is that of a ledger that is open.
    """
    chosen = place or keys_place()
    if chosen and chosen != IN_LEDGER:
        return KeyStore(Path(chosen).expanduser())
    file = KeyStore((home() if write else state_folder()) / FILE_NAME)
    where = ledger_place(create=write)
    if not chosen and isinstance(where, Path):
        return file
    table = KeyStore._in(state or SharedState(open_database(where)))
    if chosen or table.entries() or not file.entries():
        return table
    _log.warning("keys are those of %s, which other machines do not see: smallfirst keys move", file.place)
    return file


def new_key() -> str:
    """Return a new random key, an id of 12 hex digits in it. Show it to its owner once and keep only its `hash_key`."""
    return f"sf-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"


def key_id(key: str) -> str:
    """Return the id inside a key; empty if it has none."""
    found = _WITH_ID.fullmatch(key)
    return found[1] if found else ""


def hash_key(key: str) -> str:
    """Return the SHA-256 of a key in hex, as `ServeSettings.api_keys_sha256` takes it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_key_hash(text: str) -> bool:
    """Return True if `text` can be a `hash_key`, and False for a key that was entered by mistake."""
    return _SHA256_HEX.fullmatch(text) is not None


def key_matches(presented: str, hashes: Sequence[str]) -> bool:
    """Return True if the presented key has one of these hashes; the time taken does not tell which."""
    digest = hash_key(presented)
    return any([hmac.compare_digest(digest, known) for known in hashes])


def _make_key(name: str, policy: KeyPolicy, owner: str | None) -> tuple[ApiKey, str]:
    id = key_id(secret := new_key())
    values = {"id": id, "name": name, "sha256": hash_key(secret), "owner": owner or id, "policy": policy}
    return ApiKey(created_at=datetime.now(UTC), **values), secret


def _in_force(stored: Sequence[ApiKey], name_or_id: str) -> list[ApiKey]:
    found = [key for key in stored if name_or_id in (key.name, key.id) and key.revoked_at is None]
    if not found:
        known = ", ".join(dict.fromkeys(key.name for key in stored if key.revoked_at is None)) or "none"
        raise ConfigError(f'no key "{name_or_id[:64]}" is in force; in force: {known}', hint="smallfirst keys list")
    return found


def _find_owner(stored: Sequence[ApiKey], wanted: str) -> str:
    """Return the owner of the newest key that fits. A key that is given by its hash need not be in the file."""
    owners = [key.owner for key in stored if wanted in (key.name, key.id, key.shown_owner, key.sha256)]
    if not owners and not is_key_hash(wanted):
        raise ConfigError(f'no key "{wanted[:64]}" is known, whose owner could be taken', hint="smallfirst keys list")
    return owners[-1] if owners else wanted


def _today() -> date:
    return datetime.now(UTC).date()


def _days(found: Any) -> dict[str, str]:
    return {str(id): str(day) for id, day in found.items()} if isinstance(found, dict) else {}


def _parsed(value: Any, place: str) -> _File:
    if value is None:
        return _File()
    try:
        # From JSON, where a date is a text. The second attempt is only for the words of its error.
        return _File.model_validate_json(json.dumps(value))
    except pydantic.ValidationError:
        return parse_record(_File, value, where=place)
