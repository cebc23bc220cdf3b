"""Keys in a file: made, listed, revoked while a server runs, and never shown again."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fixtures.postgresql import new_database

from smallfirst.errors import ConfigError
from smallfirst.paths import home
from smallfirst.serving.auth.keys import (
    REFRESH_S,
    KeyPolicy,
    KeyStore,
    KeyStoreUnreadable,
    hash_key,
    home_key_store,
    key_id,
    new_key,
)
from smallfirst.serving.ledger.ledger import Ledger, LedgerAway
from smallfirst.serving.settings import ServeSettings

FREE = KeyPolicy()


@pytest.fixture
def key_store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


def test_a_key_is_kept_as_its_hash_and_found_by_its_id(key_store: KeyStore) -> None:
    key, secret = key_store.create("desk", KeyPolicy(role="admin", models=("small",)))
    assert key_id(secret) == key.id
    assert len(secret) == len("sf-") + 12 + len("-") + 43  # 12 hex digits, 256 bits in base64
    assert key_store.find(key.id) == key
    assert key.sha256 == hash_key(secret)
    text = Path(key_store.place).read_text()
    assert secret not in text
    assert secret[-43:] not in text
    assert stat.S_IMODE(os.stat(Path(key_store.place)).st_mode) == 0o600
    assert key_store.find("0" * 12) is None


@pytest.mark.parametrize(
    "text",
    ["", "sf-", "sf-abc-def", "sf-00000000000g-" + "a" * 43, new_key()[:-1], new_key() + "x"],
    ids=["empty", "prefix", "short", "no digit", "cut", "longer"],
)
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert key_id(text) == ""


def test_a_revoked_key_is_seen_by_a_key_store_that_is_open(key_store: KeyStore) -> None:
    serving = KeyStore(Path(key_store.place))
    assert not serving.key_required
    key, _ = key_store.create("desk", FREE)
    assert serving.key_required
    found = serving.find(key.id)
    assert found is not None
    assert found.state() == "active"
    assert key_store.revoke("desk").id == key.id
    found = serving.find(key.id)
    assert found is not None
    assert found.state() == "revoked"
    again, _ = key_store.create("desk", FREE)  # the name is free again, the old entry stays
    assert [(k.id, k.state()) for k in key_store.entries()] == [(key.id, "revoked"), (again.id, "active")]
    assert key_store.revoke(again.id).name == "desk"


def test_a_key_ends_with_the_day_before_its_expiry(key_store: KeyStore) -> None:
    key, _ = key_store.create("desk", KeyPolicy(expires_on=date(2026, 2, 1)))
    assert [key.state(day) for day in (date(2026, 1, 31), date(2026, 2, 1))] == ["active", "expired"]


def test_names_that_are_taken_or_unfit_and_keys_that_are_not_there_are_refused(key_store: KeyStore) -> None:
    key_store.create("desk", FREE)
    for name in ("desk", "", "a b", "a\nb", "-x", "a" * 65):
        with pytest.raises(ConfigError):
            key_store.create(name, FREE)
    with pytest.raises(ConfigError, match="in force: desk"):
        key_store.revoke("dsk")


def test_a_broken_file_lets_nobody_in_and_a_missing_one_does_not_open_the_server(key_store: KeyStore) -> None:
    key, _ = key_store.create("desk", FREE)
    serving = KeyStore(Path(key_store.place))
    assert serving.find(key.id) is not None
    Path(key_store.place).write_text('{"version": 1, "keys": [{"id": "x"}]}')
    assert serving.key_required
    with pytest.raises(KeyStoreUnreadable):
        serving.find(key.id)
    with pytest.raises(ConfigError, match=r"keys\.0\.id"):
        key_store.entries()
    Path(key_store.place).unlink()
    assert serving.find(key.id) is None
    assert serving.key_required  # once asked for, always asked for
    assert not KeyStore(Path(key_store.place)).key_required


def test_the_day_of_the_last_use_is_written_once_and_no_failure_stops_a_request(key_store: KeyStore) -> None:
    key, _ = key_store.create("desk", FREE)
    key_store.used(key.id)
    assert key_store.last_used() == {key.id: datetime.now(UTC).date().isoformat()}
    used = Path(key_store.place).with_name("keys-used.json")
    assert stat.S_IMODE(os.stat(used).st_mode) == 0o600
    used.unlink()
    key_store.used(key.id)
    assert not used.exists()
    nowhere = KeyStore(Path(key_store.place).parent / "missing" / "keys.json")
    nowhere.used(key.id)
    used.write_text("[1]")
    assert key_store.last_used() == {}


def test_a_key_works_at_once_and_a_revoked_one_no_more(start, key_store: KeyStore, label) -> None:
    server = start(key_store=key_store, m=label)
    assert httpx.get(f"{server.url}/v1/models").status_code == 200  # a file without keys asks for none
    key, secret = key_store.create("desk", FREE)
    _, other = key_store.create("other", FREE)
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert [m.id for m in server.client(secret).models.list()] == ["m"]
    key_store.revoke("desk")
    refused = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {secret}"})
    assert refused.status_code == 401
    assert refused.json()["error"]["message"] == f"The API key {key.id} is revoked."
    assert [m.id for m in server.client(other).models.list()] == ["m"]
    assert set(key_store.last_used()) == {key_id(secret), key_id(other)}
    Path(key_store.place).write_text("{")
    broken = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {other}"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "keys_unreadable")


def test_the_right_id_with_another_secret_opens_nothing(start, key_store: KeyStore, label) -> None:
    _, secret = key_store.create("desk", FREE)
    _, other = key_store.create("other", FREE)
    mixed = secret[:16] + other[16:]
    server = start(key_store=key_store, m=label)
    for key in (mixed, secret[:-1], secret + " x", secret.upper()):
        assert httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 401


def test_keys_given_by_their_hash_work_beside_the_key_store(start, key_store: KeyStore, label) -> None:
    fixed = new_key()
    _, secret = key_store.create("desk", FREE)
    server = start(ServeSettings(api_keys_sha256=(hash_key(fixed),)), key_store=key_store, m=label)
    for key in (fixed, secret):
        assert [m.id for m in server.client(key).models.list()] == ["m"]
    Path(key_store.place).write_text("{")  # a broken key store does not shut out the key of the command line
    assert [m.id for m in server.client(fixed).models.list()] == ["m"]


def test_keys_beside_the_ledger_are_the_same_for_all_servers(place: Path | str) -> None:
    ledgers = [Ledger(place), Ledger(place)]
    made, serving = (KeyStore.beside(ledger) for ledger in ledgers)
    assert not serving.key_required
    key, secret = made.create("desk", FREE)

    async def known() -> str:
        await serving.refresh()
        return found.state() if (found := serving.find(key.id)) else ""

    assert asyncio.run(known()) == "active"
    assert serving.key_required
    made.revoke("desk")
    assert asyncio.run(known()) == "active"  # read a moment ago
    serving._read_at_s -= REFRESH_S
    assert asyncio.run(known()) == "revoked"
    assert secret not in json.dumps(ledgers[0].shared.get("keys"))
    made.create("desk", FREE)
    with pytest.raises(ConfigError, match="there is a key called"):
        serving.create("desk", FREE)
    assert len(serving.entries()) == 2
    serving.used(key.id)
    for _ in range(200):
        if made.last_used():
            break
        time.sleep(0.01)
    assert made.last_used() == {key.id: datetime.now(UTC).date().isoformat()}
    for ledger in ledgers:
        ledger.close()


def test_keys_that_cannot_be_read_any_more_open_nothing_until_they_can(tmp_path: Path, monkeypatch: Any) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    store = KeyStore.beside(ledger)
    key, _ = store.create("desk", FREE)

    def away(_: str) -> int:
        raise LedgerAway("no connection")

    async def find() -> Any:
        store._read_at_s -= REFRESH_S
        await store.refresh()
        return store.find(key.id)

    assert asyncio.run(find()) == key
    monkeypatch.setattr(ledger.shared, "version", away)
    with pytest.raises(KeyStoreUnreadable):
        asyncio.run(find())
    assert store.key_required
    monkeypatch.undo()
    assert asyncio.run(find()) == key
    ledger.close()


def test_the_place_of_keys_is_the_file_until_they_are_moved_to_a_ledger_of_several_machines(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home_key_store(write=True).place == str(home() / "keys.json")
    monkeypatch.setenv("SMALLFIRST_LEDGER", place := new_database(postgresql))
    assert unquote(home_key_store().place) == place
    monkeypatch.delenv("SMALLFIRST_LEDGER")
    key, _ = home_key_store(write=True).create("desk", FREE)
    monkeypatch.setenv("SMALLFIRST_LEDGER", place)
    file = home_key_store()
    assert file.place == str(home() / "keys.json")  # those of before still open the server
    assert file.move_to(home_key_store("ledger")) == 1
    assert (unquote(home_key_store().place), home_key_store().entries()) == (place, (key,))
    assert not (home() / "keys.json").exists()
    monkeypatch.delenv("SMALLFIRST_LEDGER")
    monkeypatch.setenv("SMALLFIRST_KEYS", "ledger")
    assert home_key_store(write=True).place == str(home() / "ledger.db")
    monkeypatch.setenv("SMALLFIRST_KEYS", str(home() / "keys-moved.json"))
    assert home_key_store().entries() == (key,)
