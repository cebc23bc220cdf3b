"""API keys: 256 random bits each, of which the ledger's database holds the SHA-256.

What a key makes (files, jobs, models, rows of the ledger) belongs to its owner, which a rotated key keeps. Every server
of the ledger reads the keys again after REFRESH_S, so a revoked key is refused a second later at most. Once a server
has seen a key it asks for one until it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, Field
from sqlalchemy import Connection, select

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.base.paths import ledger_place
from smallfirst.base.records import Record
from smallfirst.ledger.database import KEYS, open_database
from smallfirst.ledger.ledger import Ledger

REFRESH_S = 1.0
"""Seconds after which keys are read again, before the next request."""
MAX_KEYS = 10_000
"""Keys of one ledger, revoked ones included."""

KeyState = Literal["active", "expired", "revoked"]
_Limit = Annotated[int, Field(ge=1, le=1_000_000_000)]
_Model = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/@:-]{1,128}$")]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_WITH_ID = re.compile(r"sf-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
R = TypeVar("R")
_log = logging.getLogger("smallfirst.serving")


class KeyStoreUnreadable(Exception):
    """The keys cannot be read; they open nothing until they can."""


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
    """Most requests at once at each server process; None = no limit of its own."""
    expires_on: date | None = None
    """First day (UTC) on which the key opens nothing any more; None = never."""


class ApiKey(Record):
    """One key as it is stored: everything but the key itself."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    """The part of the key that names it."""
    name: str = Field(pattern=rf"^{_NAME.pattern}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the whole key."""
    owner: str = Field(pattern=r"^[0-9a-f]{12}$")
    """Id of what the key makes and may see."""
    created_at: AwareDatetime
    revoked_at: AwareDatetime | None = None
    ends_at: AwareDatetime | None = None
    """End of the grace of a rotated key."""
    policy: KeyPolicy = KeyPolicy()

    def state(self, today: date | None = None) -> KeyState:
        """Return whether it opens anything on `today` (UTC)."""
        if self.revoked_at is not None:
            return "revoked"
        if self.ends_at is not None and datetime.now(UTC) >= self.ends_at:
            return "expired"
        ends = self.policy.expires_on
        return "expired" if ends is not None and (today or _today()) >= ends else "active"


class KeyStore:
    """The keys in the database of a ledger. Any number of processes may change them."""

    def __init__(self, ledger: Ledger | Path | str) -> None:
        """Take the keys of an open ledger, or of that at a path or URL. Raise ConfigError."""
        self.database = ledger.database if isinstance(ledger, Ledger) else open_database(ledger)
        self.place = self.database.place
        self._rows: Sequence[Any] | None = None
        self._by_id: Mapping[str, ApiKey] = {}
        self._readable, self._key_required = True, False
        self._read_at_s = float("-inf")
        self._reading = asyncio.Lock()

    async def refresh(self) -> None:
        """Read the keys again if that is longer ago than REFRESH_S."""
        if time.monotonic() - self._read_at_s <= REFRESH_S:
            return
        async with self._reading:
            if time.monotonic() - self._read_at_s > REFRESH_S:
                await asyncio.to_thread(self._read)

    @property
    def key_required(self) -> bool:
        """True if a request needs a key: there is one, or was since this object was made, or none could be read yet.

        Without keys an outage of the database changes nothing.
        """
        if self._read_at_s == float("-inf"):
            self._read()
        return self._key_required or self._rows is None

    def find(self, id: str) -> ApiKey | None:
        """Return the key of this id as it was at the last `refresh`. Raise KeyStoreUnreadable."""
        if not self._readable:
            raise KeyStoreUnreadable
        return self._by_id.get(id)

    def entries(self) -> tuple[ApiKey, ...]:
        """Return all keys, oldest first. Raise LedgerAway if they cannot be read."""
        with self.database.short_read() as connection:
            return tuple(map(_key_of, _stored(connection)))

    def create(self, name: str, policy: KeyPolicy, *, owner: str | None = None) -> tuple[ApiKey, str]:
        """Return a new key and its text, which is stored nowhere. Raise ConfigError for a taken or invalid name.

        The key is its own owner, or has that of another key: `owner` is a key's name, id or owner.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a key's name", hint="use 1 to 64 of A-Z a-z 0-9 . _ @ -")

        def change(connection: Connection, stored: Sequence[ApiKey]) -> tuple[ApiKey, str]:
            if any(key.name == name and key.revoked_at is None for key in stored):
                raise ConfigError(f'there is a key called "{name}"', hint=f"smallfirst keys rotate {name}")
            return _add_key(connection, name, policy, None if owner is None else _find_owner(stored, owner))

        return self._change(change)

    def rotate(self, name_or_id: str, *, grace_s: float = 0) -> tuple[ApiKey, str]:
        """Return a new key with the name, owner and policy of another, which ends now or after `grace_s` seconds.

        Raise ConfigError if no key of this name or id is active, or if it was rotated already.
        """
        now = datetime.now(UTC)

        def change(connection: Connection, stored: Sequence[ApiKey]) -> tuple[ApiKey, str]:
            old = _in_force(stored, name_or_id)[-1]
            if old.state() == "expired" or old.ends_at is not None:
                state = "was rotated" if old.ends_at else "has expired"
                hint = f"smallfirst keys revoke {old.id}; smallfirst keys create NAME --owner {old.id}"
                raise ConfigError(f"the key {old.id} ({old.name}) {state}", hint=hint)
            ends = {"ends_at": now + timedelta(seconds=grace_s)} if grace_s > 0 else {"revoked_at": now}
            connection.execute(KEYS.update().where(KEYS.c.id == old.id).values(ends))
            return _add_key(connection, old.name, old.policy, old.owner)

        return self._change(change)

    def revoke(self, name_or_id: str) -> ApiKey:
        """Revoke the keys of a name, or the key of an id, and return the newest. Raise ConfigError if none is in force.

        Expired keys are in force too: they keep their name.
        """

        def change(connection: Connection, stored: Sequence[ApiKey]) -> ApiKey:
            found, now = _in_force(stored, name_or_id), datetime.now(UTC)
            connection.execute(KEYS.update().where(KEYS.c.id.in_([key.id for key in found])).values(revoked_at=now))
            return found[-1].model_copy(update={"revoked_at": now})

        return self._change(change)

    def _change(self, change: Callable[[Connection, Sequence[ApiKey]], R]) -> R:
        """Return what `change` makes of the keys while no other process changes them."""
        self._read_at_s = float("-inf")
        with self.database.writer.begin() as connection:
            self.database.hold_order(connection)
            stored = tuple(map(_key_of, _stored(connection)))
            if len(stored) >= MAX_KEYS:
                raise ConfigError(f"{self.place} holds {MAX_KEYS:,} keys already", hint="start another ledger")
            return change(connection, stored)

    def _read(self) -> None:
        try:
            with self.database.short_read() as connection:
                rows = _stored(connection)
            if rows != self._rows:
                self._by_id = {key.id: key for key in map(_key_of, rows)}
            self._rows, self._readable = rows, True
            self._key_required |= bool(rows)
        except (SmallfirstError, ValueError) as error:
            _log.error("the keys cannot be read, they open nothing: %s", " ".join(str(error).split())[:300])
            self._readable = False
        self._read_at_s = time.monotonic()


def home_key_store(opened: Ledger | None = None) -> KeyStore:
    """Return the keys in the ledger of the state folder, which is made if it is missing.

    `opened` is taken if it is that ledger.
    """
    place = ledger_place(create=True)
    is_it = opened is not None and opened.path == (place if isinstance(place, Path) else None)
    return KeyStore(opened if opened is not None and is_it else place)


def new_key() -> str:
    """Return a new random key, an id of 12 hex digits in it. Show it to its owner once and keep only its `hash_key`."""
    return f"sf-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"


def key_id(key: str) -> str:
    """Return the id inside a key; empty if it has none."""
    found = _WITH_ID.fullmatch(key)
    return found[1] if found else ""


def key_ids(text: str) -> list[str]:
    """Return the ids of the keys that stand anywhere in a text."""
    return _WITH_ID.findall(text)


def hash_key(key: str) -> str:
    """Return the SHA-256 of a key in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _stored(connection: Connection) -> Sequence[Any]:
    return connection.execute(select(KEYS).order_by(KEYS.c.created_at)).all()


def _key_of(row: Any) -> ApiKey:
    return ApiKey.model_validate({**row._mapping, "policy": KeyPolicy.model_validate_json(row.policy)})


def _add_key(connection: Connection, name: str, policy: KeyPolicy, owner: str | None) -> tuple[ApiKey, str]:
    id = key_id(secret := new_key())
    values = {"id": id, "name": name, "sha256": hash_key(secret), "owner": owner or id}
    key = ApiKey(created_at=datetime.now(UTC), policy=policy, **values)
    connection.execute(KEYS.insert().values({**key.model_dump(), "policy": policy.model_dump_json()}))
    return key, secret


def _in_force(stored: Sequence[ApiKey], name_or_id: str) -> list[ApiKey]:
    found = [key for key in stored if name_or_id in (key.name, key.id) and key.revoked_at is None]
    if not found:
        known = ", ".join(dict.fromkeys(key.name for key in stored if key.revoked_at is None)) or "none"
        raise ConfigError(f'no key "{name_or_id[:64]}" is in force; in force: {known}', hint="smallfirst keys list")
    return found


def _find_owner(stored: Sequence[ApiKey], wanted: str) -> str:
    """Return the owner of the newest key that fits."""
    owners = [key.owner for key in stored if wanted in (key.name, key.id, key.owner)]
    if not owners:
        raise ConfigError(f'no key "{wanted[:64]}" is known, whose owner could be taken', hint="smallfirst keys list")
    return owners[-1]


def _today() -> date:
    return datetime.now(UTC).date()
