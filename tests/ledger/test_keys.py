"""Keys in the ledger's database: made, listed, revoked while servers run, and never shown again."""

import asyncio
import time
from datetime import date
from pathlib import Path

import httpx
import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.base.paths import home
from smallfirst.ledger.database import KEYS
from smallfirst.ledger.keys import (
    REFRESH_S,
    KeyPolicy,
    KeyStore,
    KeyStoreUnreadable,
    hash_key,
    home_key_store,
    key_id,
    new_key,
)
from smallfirst.ledger.ledger import Ledger

FREE = KeyPolicy()


@pytest.fixture
def key_store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "ledger.db")


def look_again(key_store: KeyStore) -> None:
    """Read the keys as after REFRESH_S."""
    key_store._read_at_s = min(key_store._read_at_s, time.monotonic() - REFRESH_S - 1)
    asyncio.run(key_store.refresh())


def break_keys(key_store: KeyStore) -> None:
    with key_store.database.writer.begin() as connection:
        connection.execute(KEYS.update().values(policy="{"))


def test_a_key_is_kept_as_its_hash_and_found_by_its_id(key_store: KeyStore) -> None:
    key, secret = key_store.create("desk", KeyPolicy(role="admin", models=("small",), expires_on=date(2099, 1, 31)))
    assert key_id(secret) == key.id
    assert len(secret) == len("sf-") + 12 + len("-") + 43  # 12 hex digits, 256 bits in base64
    look_again(key_store)
    assert key_store.find(key.id) == key == key_store.entries()[0]
    assert key.sha256 == hash_key(secret)
    path = Path(key_store.place)
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert secret.encode() not in content
    assert secret[-43:].encode() not in content
    assert path.stat().st_mode & 0o077 == 0
    assert key_store.find("0" * 12) is None


@pytest.mark.parametrize(
    "text",
    ["", "sf-", "sf-abc-def", "sf-00000000000g-" + "a" * 43, new_key()[:-1], new_key() + "x"],
    ids=["empty", "prefix", "short", "no digit", "cut", "longer"],
)
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert key_id(text) == ""


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


def test_keys_are_the_same_for_all_servers_of_a_ledger_within_a_second(place: Path | str) -> None:
    ledgers = [Ledger(place), Ledger(place)]
    made, serving = (KeyStore(ledger) for ledger in ledgers)
    assert not serving.key_required
    key, _ = made.create("desk", FREE)
    look_again(serving)
    found = serving.find(key.id)
    assert (found.state(), serving.key_required) == ("active", True)
    assert made.revoke("desk").id == key.id
    asyncio.run(serving.refresh())
    assert serving.find(key.id) == key  # read a moment ago
    look_again(serving)
    found = serving.find(key.id)
    assert found.state() == "revoked"
    again, _ = made.create("desk", FREE)  # the name is free again, the old entry stays
    with pytest.raises(ConfigError, match="there is a key called"):
        serving.create("desk", FREE)
    assert [(k.id, k.state()) for k in serving.entries()] == [(key.id, "revoked"), (again.id, "active")]
    assert made.revoke(again.id).name == "desk"
    for ledger in ledgers:
        ledger.close()


def test_keys_that_cannot_be_read_open_nothing_until_they_can_and_a_server_that_asked_for_one_goes_on(
    key_store: KeyStore,
) -> None:
    look_again(key_store)
    for before, after in (("keys", "away"), ("away", "keys")):
        with key_store.database.writer.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {before} RENAME TO {after}")
        look_again(key_store)
        assert not key_store.key_required  # without keys an outage changes nothing
        assert KeyStore(Path(key_store.place)).key_required == (after == "away")  # unless nothing is known yet
    key, _ = key_store.create("desk", FREE)
    look_again(key_store)
    assert key_store.find(key.id) == key
    break_keys(key_store)
    look_again(key_store)
    assert key_store.key_required
    with pytest.raises(KeyStoreUnreadable):
        key_store.find(key.id)
    with key_store.database.writer.begin() as connection:
        connection.execute(KEYS.delete())
    look_again(key_store)
    assert key_store.find(key.id) is None
    assert key_store.key_required  # once asked for, always asked for
    assert not KeyStore(Path(key_store.place)).key_required


def test_a_key_works_at_once_and_a_revoked_one_no_more(start, key_store: KeyStore, label) -> None:
    server = start(key_store=key_store, m=label)
    assert httpx.get(f"{server.url}/v1/models").status_code == 200  # without a key none is asked for
    key, secret = key_store.create("desk", FREE)
    _, other = key_store.create("other", FREE)
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert [m.id for m in server.client(secret).models.list()] == ["m"]
    key_store.revoke("desk")
    refused = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {secret}"})
    assert refused.status_code == 401
    assert refused.json()["error"]["message"] == f"The API key {key.id} is revoked."
    assert [m.id for m in server.client(other).models.list()] == ["m"]
    break_keys(key_store)
    key_store._read_at_s = 0
    broken = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {other}"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "keys_unreadable")


def test_the_right_id_with_another_secret_opens_nothing(start, key_store: KeyStore, label) -> None:
    _, secret = key_store.create("desk", FREE)
    _, other = key_store.create("other", FREE)
    mixed = secret[:16] + other[16:]
    server = start(key_store=key_store, m=label)
    for key in (mixed, secret[:-1], secret + " x", secret.upper()):
        assert httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 401


def test_keys_are_in_the_ledger_of_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(home() / "ledger.db")
    key, _ = home_key_store().create("desk", FREE)
    assert home_key_store(ledger).database is ledger.database
    assert home_key_store(ledger).entries() == (key,)
    monkeypatch.setenv("SMALLFIRST_LEDGER", str(tmp_path / "other.db"))
    assert home_key_store(ledger).entries() == ()
    ledger.close()
