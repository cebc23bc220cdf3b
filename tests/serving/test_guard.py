"""Who may ask: keys, host names, and settings that would let strangers in."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from smallfirst.errors import (
    ConfigError,
)
from smallfirst.serving.app import build_app
from smallfirst.serving.keys import hash_key, key_matches, new_key
from smallfirst.serving.settings import ServeSettings

HELLO: list[Any] = [{"role": "user", "content": "hello small world"}]
BODY = {"model": "m", "messages": HELLO}


def test_health_needs_no_key_and_everything_else_does(start, label) -> None:
    key = new_key()
    house = start(ServeSettings(api_keys_sha256=(hash_key(new_key()), hash_key(key))), m=label)
    health = httpx.get(f"{house.url}/health").json()
    assert health["status"] == "ok"
    assert set(health) == {"status", "version"}
    assert house.client(key).chat.completions.create(**BODY).choices[0].message.content == "refund"
    for path in ("/v1/models", "/nowhere", "/health/", "//health", "/health%2F"):
        answer = httpx.get(house.url + path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"].startswith("req-")
    with pytest.raises(openai.AuthenticationError) as caught:
        house.client("wrong").chat.completions.create(**BODY)
    assert caught.value.body == {
        "message": "The API key is not known here.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert len(house.ledger.rows()) == 1  # strangers cannot fill the disk


def test_keys_match_only_themselves() -> None:
    hashes = (hash_key("a"), hash_key("b"))
    assert [key_matches(key, hashes) for key in ("a", "b", "c", "", "A")] == [True, True] + [False] * 3
    assert hash_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert new_key() != new_key()


def test_without_keys_a_foreign_host_name_is_refused(start, label) -> None:
    house = start(m=label)
    for host, status in [("localhost:1", 200), ("[::1]:9", 200), ("evil.example", 403), ("[", 403)]:
        answer = httpx.get(f"{house.url}/v1/models", headers={"host": host})
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ServeSettings(host="0.0.0.0"),
            'host "0.0.0.0" can be reached from other machines, and no API key is set\n'
            "  next: set api_keys_sha256, or listen on 127.0.0.1",
        ),
        (
            ServeSettings(api_keys_sha256=("sk-my-real-key",)),
            "api_keys_sha256[0] is not a SHA-256 in lower-case hex (64 digits)\n"
            '  next: hash the key first: printf %s "$KEY" | sha256sum',
        ),
    ],
)
def test_unsafe_settings_are_refused(settings: ServeSettings, message: str, label, tmp_path) -> None:
    with pytest.raises(ConfigError) as caught:
        build_app({"m": label}, ledger=None, settings=settings)
    assert str(caught.value) == message


def test_an_open_address_is_served_with_a_key(label) -> None:
    settings = ServeSettings(host="0.0.0.0", api_keys_sha256=(hash_key("k"),))
    assert build_app({"m": label}, ledger=None, settings=settings)


@pytest.mark.parametrize("models", [{}, {"a b": None}, {"a\r\nb": None}])
def test_no_models_and_impossible_names_are_refused(models: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build_app(models, ledger=None, settings=ServeSettings())
