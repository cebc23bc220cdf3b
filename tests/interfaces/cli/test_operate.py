"""Keys: what is printed, what is kept, and what is never shown again."""

import json
import re
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner

from smallfirst.base.errors import ConfigError
from smallfirst.base.paths import home
from smallfirst.interfaces.cli.operate import keys
from smallfirst.ledger.keys import KeyPolicy, KeyStore, key_id


@pytest.fixture
def ring(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.db")


def test_keys_are_made_listed_and_revoked_by_commands(ring: KeyStore) -> None:
    run = CliRunner()
    file = ["--ledger", ring.place]
    assert "no keys" in run.invoke(keys, ["list", *file]).output
    options = [
        "--model", "small", "--model", "org/large", "--requests-per-minute", "60", "--expires", "2099-01-31",
        "--admin",
    ]  # fmt: skip
    made = run.invoke(keys, ["create", "desk", *options, *file])
    secret = made.stdout.strip()
    assert key_id(secret)
    (key,) = ring.entries()
    assert key.policy == KeyPolicy(
        role="admin", models=("small", "org/large"), requests_per_minute=60, expires_on=date(2099, 1, 31)
    )
    listed = run.invoke(keys, ["list", *file]).output
    assert secret not in listed
    assert key.sha256 not in listed
    for part in ("desk", key.id, "active", "admin", "small, org/large", "60 requests/min", "2099-01-31"):
        assert part in listed
    assert run.invoke(keys, ["revoke", key.id, *file]).output == f"revoked desk ({key.id})\n"
    (shown,) = json.loads(run.invoke(keys, ["list", "--json", *file]).output)
    assert (shown["state"], shown["name"], shown["max_in_flight"]) == ("revoked", "desk", None)
    assert "sha256" not in shown
    assert json.loads(run.invoke(keys, ["create", "other", "--json", *file]).output)["key"].startswith("sf-")


def test_a_rotated_key_keeps_name_policy_and_owner_and_others_may_join_it(ring: KeyStore) -> None:
    run, file = CliRunner(), ["--ledger", ring.place]
    first = json.loads(run.invoke(keys, ["create", "desk", "--model", "small", "--json", *file]).output)
    rotated = json.loads(run.invoke(keys, ["rotate", "desk", "--grace-s", "60", "--json", *file]).output)
    same = ("name", "owner", "models", "role")
    assert [rotated[field] for field in same] == [first[field] for field in same]
    assert rotated["key"] != first["key"]
    assert key_id(run.invoke(keys, ["create", "night", "--owner", "desk", *file]).stdout.strip())
    assert {key.owner for key in ring.entries()} == {first["owner"]}
    listed = run.invoke(keys, ["list", *file]).output
    assert re.search(r"  20\d\d-\d\d-\d\d \d\d:", listed.splitlines()[1])  # when the old one ends
    assert all(line.split().count(first["owner"]) == 1 for line in listed.splitlines()[1:])
    again = run.invoke(keys, ["rotate", "desk", *file]).stdout.strip()
    states = {key.id: key.state() for key in ring.entries()}
    assert [states[id] for id in (first["id"], rotated["id"], key_id(again))] == ["active", "revoked", "active"]
    for arguments in (["rotate", first["id"]], ["rotate", "none"], ["create", "more", "--owner", "none"]):
        assert isinstance(run.invoke(keys, [*arguments, *file]).exception, ConfigError)


def test_keys_live_in_the_state_folder_and_mistakes_are_named() -> None:
    run = CliRunner()
    assert run.invoke(keys, ["create", "desk"]).exit_code == 0
    (key,) = KeyStore(home() / "ledger.db").entries()
    assert key.policy == KeyPolicy()
    for arguments in (["create", "desk"], ["revoke", "none"], ["create", "other", "--model", "a b"]):
        failed = run.invoke(keys, arguments)
        assert isinstance(failed.exception, ConfigError)  # the command line prints it without a traceback
    assert run.invoke(keys, ["create", "other", "--requests-per-minute", "0"]).exit_code == 2
