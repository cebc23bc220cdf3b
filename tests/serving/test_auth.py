"""Who may ask: keys, host names, and settings that would let strangers in."""

from typing import Any

import httpx
import openai
import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.serving.app import build_app
from smallfirst.serving.settings import ServeSettings

HELLO: list[Any] = [{"role": "user", "content": "hello small world"}]
BODY = {"model": "m", "messages": HELLO}


@pytest.fixture
def keyed(tmp_path) -> tuple[KeyStore, str]:
    store = KeyStore(tmp_path / "keys.db")
    return store, store.create("desk", KeyPolicy())[1]


def test_health_needs_no_key_and_everything_else_does(start, label, keyed) -> None:
    store, key = keyed
    server = start(key_store=store, m=label)
    health = httpx.get(f"{server.url}/health").json()
    assert health["status"] == "ok"
    assert set(health) == {"status", "version"}
    assert server.client(key).chat.completions.create(**BODY).choices[0].message.content == "refund"
    answer = httpx.get(f"{server.url}/v1/models")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["x-request-id"].startswith("req-")
    with pytest.raises(openai.AuthenticationError) as caught:
        server.client("wrong").chat.completions.create(**BODY)
    assert caught.value.body == {
        "message": "The API key is not known to this server.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert len(server.ledger.rows()) == 1  # strangers cannot fill the disk


@pytest.mark.parametrize(("name", "value", "status"), [
    ("host", "localhost:1", 200), ("host", "[::1]:9", 200), ("host", "evil.example", 403), ("host", "[", 403),
    ("origin", "http://localhost:3000", 200), ("origin", "https://evil.example", 403), ("origin", "null", 403),
    ("origin", "http://localhost@evil.example", 403), ("sec-fetch-site", "cross-site", 403),
    ("sec-fetch-site", "same-site", 200), ("sec-fetch-site", "same-origin", 200), ("sec-fetch-site", "none", 200),
    ("host", "LOCALHOST", 200), ("host", "127.0.0.1", 200), ("host", "127.8.8.8:80", 200),
    ("host", "localhost.evil.example", 403), ("host", "localhost@evil.example", 403),
    ("host", "evil.example@localhost", 403), ("host", "localhost/evil.example", 403),
    ("host", "127.0.0.1.evil.example", 403), ("host", "localhost:99999999", 403), ("host", "2130706433", 403),
    ("host", "[::ffff:10.0.0.1]", 403), ("host", "", 403),
])  # fmt: skip
def test_without_keys_only_hosts_and_origins_of_this_machine_pass(start, label, name, value, status: int) -> None:
    answer = httpx.get(f"{start(m=label).url}/v1/models", headers={name: value})
    assert answer.status_code == status


def test_only_one_bearer_header_is_read(start, label, keyed) -> None:
    store, key = keyed
    url = f"{start(key_store=store, m=label).url}/v1/models"
    good = ("authorization", f"Bearer {key}")
    bad = ("authorization", "Bearer other")
    for headers, status in [
        ([good], 200),
        ([("AUTHORIZATION", f"bearer {key}")], 200),
        ([good, good], 401),
        ([good, bad], 401),
        ([bad, good], 401),
        ([("authorization", f"Basic {key}")], 401),
        ([("authorization", key)], 401),
        ([("authorization", f"Bearer {key[:-1]}")], 401),
        ([("authorization", "Bearer ä".encode())], 401),
        ([("authorization", "Bearer " + "a" * 9_000)], 401),
        ([("x-api-key", key)], 401),
        ([("cookie", f"key={key}")], 401),
    ]:
        assert httpx.get(url, headers=headers).status_code == status, headers
    assert httpx.get(f"{url}?api_key={key}").status_code == 401


def test_an_open_address_is_served_only_with_a_key(label, keyed, tmp_path) -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines, and no API key is set"):
        build_app({"m": label}, ledger=None, settings=ServeSettings(host="0.0.0.0"))
    ledger = Ledger(tmp_path / "ledger.db")
    assert build_app({"m": label}, ledger=ledger, settings=ServeSettings(host="0.0.0.0"), key_store=keyed[0])
    ledger.close()


@pytest.mark.parametrize("models", [{}, {"a b": None}, {"a\r\nb": None}])
def test_no_models_and_impossible_names_are_refused(models: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build_app(models, ledger=None, settings=ServeSettings())
