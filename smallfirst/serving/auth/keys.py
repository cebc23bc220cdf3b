"""API keys: 256 random bits each, stored as SHA-256 in one JSON file that the server only reads.

What a key makes (files, jobs, models, rows of the ledger) belongs to its owner, which a rotated key keeps. The file's
time, size and inode are looked at before every request, so a revoked key is refused from the next one on.
Once a server has seen a key it asks for one until it ends, even if the file goes away. The days on which keys were last
used are in a second file, so that the first one has no writer but the command line.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AliasChoices, AwareDatetime, Field

from smallfirst.errors import ConfigError
from smallfirst.files import locked, write_atomically
from smallfirst.paths import home, state_folder
from smallfirst.records import Record, parse_record

FILE_NAME = "keys.json"
MAX_KEYS = 10_000
"""Keys of one file, revoked ones included."""

KeyState = Literal["active", "expired", "revoked"]
_Limit = Annotated[int, Field(ge=1, le=1_000_000_000)]
_Model = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/@:-]{1,128}$")]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_WITH_ID = re.compile(r"sf-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_log = logging.getLogger("smallfirst.serving")


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
    policy: KeyPolicy = Field(default=KeyPolicy(), validation_alias=AliasChoices("policy", "terms"))
    """What it allows; `terms` in older files."""

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


class _File(Record):
    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = Field(default=(), max_length=MAX_KEYS)


class KeyStore:
    """The keys in one file. Reading is for one thread; any number of processes may change the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: tuple[int, int, int] | None = None
        self._by_id: Mapping[str, ApiKey] = {}
        self._readable = True
        self._key_required = False
        self._used: dict[str, str] = {}

    @property
    def key_required(self) -> bool:
        """True if a request needs a key: the file has, or had since this object was made, at least one."""
        self._reload()
        return self._key_required

    def find(self, id: str) -> ApiKey | None:
        """Return the key of this id as the file has it now. Raise KeyStoreUnreadable."""
        self._reload()
        if not self._readable:
            raise KeyStoreUnreadable
        return self._by_id.get(id)

    def entries(self) -> tuple[ApiKey, ...]:
        """Return all keys, oldest first. Raise ConfigError if the file cannot be read."""
        return _read(self.path).keys

    def create(self, name: str, policy: KeyPolicy, *, owner: str | None = None) -> tuple[ApiKey, str]:
        """Return a new key and its text, which is stored nowhere. Raise ConfigError for a taken or invalid name.

        The key is its own owner, or has that of another key: `owner` is a key's name, id, owner or hash.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a key's name", hint="use 1 to 64 of A-Z a-z 0-9 . _ @ -")
        with locked(_lock_path(self.path)):
            stored = _read(self.path).keys
            if any(key.name == name and key.revoked_at is None for key in stored):
                raise ConfigError(f'there is a key called "{name}"', hint=f"smallfirst keys rotate {name}")
            key, secret = _make_key(name, policy, None if owner is None else _find_owner(stored, owner))
            _write(self.path, (*stored, key))
        return key, secret

    def rotate(self, name_or_id: str, *, grace_s: float = 0) -> tuple[ApiKey, str]:
        """Return a new key with the name, owner and policy of another, which ends now or after `grace_s` seconds.

        Raise ConfigError if no key of this name or id is active, or if it was rotated already.
        """
        now = datetime.now(UTC)
        with locked(_lock_path(self.path)):
            stored = _read(self.path).keys
            old = _in_force(stored, name_or_id)[-1]
            if old.state() == "expired" or old.ends_at is not None:
                state = "was rotated" if old.ends_at else "has expired"
                hint = f"smallfirst keys revoke {old.id}; smallfirst keys create NAME --owner {old.id}"
                raise ConfigError(f"the key {old.id} ({old.name}) {state}", hint=hint)
            key, secret = _make_key(old.name, old.policy, old.owner)
            ends = {"ends_at": now + timedelta(seconds=grace_s)} if grace_s > 0 else {"revoked_at": now}
            ended = old.model_copy(update=ends)
            _write(self.path, (*(ended if each.id == old.id else each for each in stored), key))
        return key, secret

    def revoke(self, name_or_id: str) -> ApiKey:
        """Revoke the keys of a name, or the key of an id, and return the newest. Raise ConfigError if none is in force.

        Expired keys are in force too: they keep their name.
        """
        with locked(_lock_path(self.path)):
            stored = _read(self.path).keys
            found = {key.id for key in _in_force(stored, name_or_id)}
            revoked = {"revoked_at": datetime.now(UTC)}
            keys = tuple(key.model_copy(update=revoked) if key.id in found else key for key in stored)
            _write(self.path, keys)
        return next(key for key in reversed(keys) if key.id in found)

    def last_used(self) -> Mapping[str, str]:
        """Return, by id, the day (UTC, ISO 8601) on which a key was last used; ids never used are missing."""
        try:
            found = json.loads(self._used_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(id): str(day) for id, day in found.items()} if isinstance(found, dict) else {}

    def used(self, id: str) -> None:
        """Note that a key was used today; a disk that cannot be written to stops nobody."""
        today = _today().isoformat()
        if self._used.get(id) == today:
            return
        self._used[id] = today
        try:
            with locked(_lock_path(self._used_path)):
                text = json.dumps({**self.last_used(), id: today}, indent=1)
                write_atomically(self._used_path, text.encode(), mode=0o600)
        except OSError as error:
            _log.warning("the last use of key %s was not noted: %s", id, error.strerror)

    @property
    def _used_path(self) -> Path:
        return self.path.with_name(f"{self.path.stem}-used.json")

    def _reload(self) -> None:
        try:
            stat = os.stat(self.path)
            version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            version = None
        if version == self._version:
            return
        self._version = version
        try:
            stored = _read(self.path).keys
        except ConfigError as error:
            _log.error("the key store cannot be read, its keys open nothing: %s", " ".join(str(error).split())[:300])
            self._readable, self._key_required = False, True
            return
        self._by_id, self._readable = {key.id: key for key in stored}, True
        self._key_required |= bool(stored)


def home_key_store(*, write: bool = False) -> KeyStore:
    """Return the key store of the state folder, which is created if keys are to be written."""
    return KeyStore((home() if write else state_folder()) / FILE_NAME)


def new_id() -> str:
    """Return a new key id: 12 hex digits."""
    return secrets.token_hex(6)


def new_key(id: str | None = None) -> str:
    """Return a new random key with `id` in it. Show it to its owner once and keep only its `hash_key`."""
    return f"sf-{id or new_id()}-{secrets.token_urlsafe(32)}"


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
    found = False
    for known in hashes:
        found |= hmac.compare_digest(digest, known)
    return found


def _make_key(name: str, policy: KeyPolicy, owner: str | None) -> tuple[ApiKey, str]:
    secret = new_key(id := new_id())
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


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _write(path: Path, keys: tuple[ApiKey, ...]) -> None:
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"{path} holds {MAX_KEYS:,} keys already", hint="start another file")
    write_atomically(path, _File(keys=keys).model_dump_json(indent=2).encode(), mode=0o600)


def _read(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _File()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    try:
        # From JSON, where a date is a text. The second attempt is only for the words of its error.
        return _File.model_validate_json(text)
    except pydantic.ValidationError:
        try:
            return parse_record(_File, json.loads(text), where=str(path))
        except ValueError:
            raise ConfigError(f"{path} is no key store: not JSON", hint="move it away, or repair it") from None
