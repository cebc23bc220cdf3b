"""Keys in a file: made, listed, revoked while a server runs, and never shown again."""

from __future__ import annotations

import os
import stat
import time
import timeit
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import httpx
import pytest
from fixtures.secured_server import Build, fortresses

from smallfirst.errors import ConfigError
from smallfirst.serving.auth.key_store import KeyPolicy, KeyStore, KeyStoreUnreadable
from smallfirst.serving.auth.keys import hash_key, key_id, new_key
from smallfirst.serving.settings import ServeSettings

FREE = KeyPolicy()


@pytest.fixture
def fortress(tmp_path: Path) -> Iterator[Build]:
    with fortresses(tmp_path) as build:
        yield build


@pytest.fixture
def ring(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


def test_a_key_is_kept_as_its_hash_and_found_by_its_id(ring: KeyStore) -> None:
    key, secret = ring.create("desk", KeyPolicy(role="admin", models=("small",)))
    assert key_id(secret) == key.id
    assert len(secret) == len("sf-") + 12 + len("-") + 43  # 12 hex digits, 256 bits in base64
    assert ring.find(key.id) == key
    assert key.sha256 == hash_key(secret)
    text = ring.path.read_text()
    assert secret not in text
    assert secret.rpartition("-")[2] not in text
    assert stat.S_IMODE(os.stat(ring.path).st_mode) == 0o600
    assert ring.find("0" * 12) is None


@pytest.mark.parametrize(
    "text",
    ["", "sf-", "sf-abc-def", "sf-00000000000g-" + "a" * 43, new_key()[:-1], new_key() + "x"],
    ids=["empty", "prefix", "short", "no digit", "cut", "longer"],
)
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert key_id(text) == ""


def test_a_revoked_key_is_seen_by_a_keyring_that_is_open(ring: KeyStore) -> None:
    serving = KeyStore(ring.path)
    assert not serving.demands_keys
    key, _ = ring.create("desk", FREE)
    assert serving.demands_keys
    found = serving.find(key.id)
    assert found is not None
    assert found.state() == "active"
    assert ring.revoke("desk").id == key.id
    found = serving.find(key.id)
    assert found is not None
    assert found.state() == "revoked"
    again, _ = ring.create("desk", FREE)  # the name is free again, the old entry stays
    assert [(k.id, k.state()) for k in ring.entries()] == [(key.id, "revoked"), (again.id, "active")]
    assert ring.revoke(again.id).name == "desk"


def test_a_key_ends_with_the_day_before_its_expiry(ring: KeyStore) -> None:
    key, _ = ring.create("desk", KeyPolicy(expires_on=date(2026, 2, 1)))
    assert [key.state(day) for day in (date(2026, 1, 31), date(2026, 2, 1))] == ["active", "expired"]


def test_names_that_are_taken_or_unfit_and_keys_that_are_not_there_are_refused(ring: KeyStore) -> None:
    ring.create("desk", FREE)
    for name in ("desk", "", "a b", "a\nb", "-x", "a" * 65):
        with pytest.raises(ConfigError):
            ring.create(name, FREE)
    with pytest.raises(ConfigError, match="in force: desk"):
        ring.revoke("dsk")


def test_a_broken_file_lets_nobody_in_and_a_missing_one_does_not_open_the_door(ring: KeyStore) -> None:
    key, _ = ring.create("desk", FREE)
    serving = KeyStore(ring.path)
    assert serving.find(key.id) is not None
    ring.path.write_text('{"version": 1, "keys": [{"id": "x"}]}')
    assert serving.demands_keys
    with pytest.raises(KeyStoreUnreadable):
        serving.find(key.id)
    with pytest.raises(ConfigError, match=r"keys\.0\.id"):
        ring.entries()
    ring.path.unlink()
    assert serving.find(key.id) is None
    assert serving.demands_keys  # once asked for, always asked for
    assert not KeyStore(ring.path).demands_keys


def test_the_day_of_the_last_use_is_written_once_and_no_failure_stops_a_request(ring: KeyStore) -> None:
    key, _ = ring.create("desk", FREE)
    ring.used(key.id)
    assert ring.last_used() == {key.id: datetime.now(UTC).date().isoformat()}
    used = ring.path.with_name("keys-used.json")
    assert stat.S_IMODE(os.stat(used).st_mode) == 0o600
    used.unlink()
    ring.used(key.id)
    assert not used.exists()
    nowhere = KeyStore(ring.path.parent / "missing" / "keys.json")
    nowhere.used(key.id)
    used.write_text("[1]")
    assert ring.last_used() == {}


def test_looking_costs_less_than_50_microseconds(ring: KeyStore) -> None:
    ids = [ring.create(f"k{n}", FREE)[0].id for n in range(20)]
    ring.find(ids[0])
    runs = timeit.repeat(lambda: [ring.find(id) for id in ids], timer=time.process_time, number=50, repeat=7)
    assert min(runs) / 1000 < 50e-6  # a busy machine is no failure of the code


def test_a_key_works_at_once_and_a_revoked_one_no_more(fortress, ring: KeyStore, label) -> None:
    house = fortress(ring, m=label)
    assert httpx.get(f"{house.url}/v1/models").status_code == 200  # a file without keys asks for none
    key, secret = ring.create("desk", FREE)
    _, other = ring.create("other", FREE)
    assert httpx.get(f"{house.url}/v1/models").status_code == 401
    assert [m.id for m in house.client(secret).models.list()] == ["m"]
    ring.revoke("desk")
    refused = httpx.get(f"{house.url}/v1/models", headers={"authorization": f"Bearer {secret}"})
    assert refused.status_code == 401
    assert refused.json()["error"]["message"] == f"The API key {key.id} is revoked."
    assert [m.id for m in house.client(other).models.list()] == ["m"]
    assert set(ring.last_used()) == {key_id(secret), key_id(other)}
    ring.path.write_text("{")
    broken = httpx.get(f"{house.url}/v1/models", headers={"authorization": f"Bearer {other}"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "keys_unreadable")


def test_the_right_id_with_another_secret_opens_nothing(fortress, ring: KeyStore, label) -> None:
    _, secret = ring.create("desk", FREE)
    _, other = ring.create("other", FREE)
    mixed = secret[:16] + other[16:]
    house = fortress(ring, m=label)
    for key in (mixed, secret[:-1], secret + " x", secret.upper()):
        assert httpx.get(f"{house.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 401


def test_keys_given_by_their_hash_work_beside_the_keyring(fortress, ring: KeyStore, label) -> None:
    fixed = new_key()
    _, secret = ring.create("desk", FREE)
    house = fortress(ring, ServeSettings(api_keys_sha256=(hash_key(fixed),)), m=label)
    for key in (fixed, secret):
        assert [m.id for m in house.client(key).models.list()] == ["m"]
    ring.path.write_text("{")  # a broken keyring does not shut out the key of the command line
    assert [m.id for m in house.client(fixed).models.list()] == ["m"]
