"""Paths, and what a key that is limited to models may ask of a running proxy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.traffic.gateway.access import Access
from tests.traffic.gateway.conftest import Proxied, answer

Ask = Callable[..., tuple[str, bytes]]
MODELS = {
    "object": "list",
    "data": [{"id": name, "object": "model"} for name in ("mine", "other", "org/mine")],
    "first_id": "other",
}
CHAT, JSON = "POST /v1/chat/completions", "application/json"


@pytest.fixture
def ask(proxied: Proxied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask with a key for `mine` and `org/mine`; return status or the proxy's error, and the answer."""
    store = KeyStore(tmp_path / "keys.db")
    _, key = store.create("ada", KeyPolicy(models=("mine", "org/mine")))
    monkeypatch.setattr(proxied.gateway, "access", Access(store))
    proxied.upstream.script = answer(json.dumps(MODELS).encode())

    def send(line: str, body: str = "", *more: str, kind: str = JSON) -> tuple[str, bytes]:
        lines = [f"{line} HTTP/1.1", "Host: h", "Connection: close", f"X-Smallfirst-Key: {key}", *more]
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"] if body else []
        status, headers, said = proxied.send("\n".join(lines), body.encode())
        return headers.get("x-smallfirst-error") or status.split()[1], said

    return send


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (CHAT, '{"model": "mine", "model": "other"}'),
        (CHAT, '{"model": "other", "model": "mine"}'),
        (CHAT, '{"model": "mine", "Model": "other"}'),
        (CHAT, '{"model": "mine", "MODEL": "other"}'),
        (CHAT, '{"model": "mine", "models": ["mine", "other"]}'),
        (CHAT, '{"model": "mine", "fallbacks": [{"model": "other"}]}'),
        (CHAT, '{"model": "mine", "fallbacks": ["other"]}'),
        (CHAT, '{"model": "mine", "tools": [{"type": "image_generation", "model": "other"}]}'),
        (CHAT, '{"model": "other"}'),
        (CHAT, '{"model": ["mine"]}'),
        (CHAT, "[]"),
        (CHAT, "{}"),
        (CHAT, ""),
        (CHAT + "?model=other", '{"model": "mine"}'),
        ("POST /v1/deployments/other/chat/completions", '{"model": "mine"}'),
        ("POST /v1/deployments/mine/chat/completions", '{"model": "other"}'),
        ("POST /v1/engines/other/completions", '{"model": "mine"}'),
        ("POST /v1/models/other:generateContent", '{"model": "mine"}'),
        ("POST /v1/x/y/chat/completions", '{"model": "mine"}'),
        ("POST /v1/%63hat/completions", '{"model": "mine"}'),
        ("POST /v1/fine_tuning/jobs", '{"model": "mine"}'),
        ("POST /v1/batches", '{"model": "mine", "input_file_id": "f"}'),
        ("GET /v1/files", ""),
        ("GET /v1/files/f/content", ""),
        ("GET /v1/models/other", ""),
        ("GET /v1/responses/resp_1", ""),
        ("DELETE /v1/models/mine", ""),
        ("DELETE /v1/files/f", ""),
        ("GET /v1", ""),
        ("GET /health/../v1/files", ""),
        (CHAT, '\ufeff{"model": "mine"}'),
    ],
)
def test_a_limited_key_may_not(ask: Ask, proxied: Proxied, line: str, body: str) -> None:
    assert ask(line, body)[0] in ("model_not_allowed", "not_below_v1")
    assert proxied.upstream.asked == []


def test_headers_that_make_another_request_of_it_are_refused_to_a_limited_key(ask: Ask, proxied: Proxied) -> None:
    fine = '{"model": "mine"}'
    for more in ("X-HTTP-Method-Override: DELETE", "X-Original-URL: /v1/files", "Content-Encoding: gzip"):
        assert ask(CHAT, fine, more)[0] == "model_not_allowed", more
    assert ask(CHAT, fine, kind="application/x-www-form-urlencoded")[0] == "model_not_allowed"


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (CHAT, '{"model": "mine", "messages": [{"role": "user", "content": "model"}]}'),
        (CHAT + "?api-version=2", '{"model": "org/mine"}'),
        (CHAT, '{"model": "mine", "models": ["mine"], "metadata": {"model": "Golf"}}'),
        (
            CHAT,
            '{"model": "mine", "tools": [{"type": "function", "function": {"name": "f", "parameters": '
            '{"type": "object", "properties": {"model": {"type": "string"}}, "required": ["model"]}}}]}',
        ),
        ("POST /v1/deployments/mine/chat/completions?api-version=2", '{"messages": []}'),
        ("POST /v1/deployments/org%2Fmine/embeddings", '{"model": "org/mine"}'),
        ("POST /v1/responses", '{"model": "mine"}'),
        ("POST /v1/messages", '{"model": "mine"}'),
        ("POST /v1/embeddings", '{"model": "mine"}'),
        ("GET /v1/models/mine", ""),
        ("GET /v1/models/org%2Fmine", ""),
    ],
)
def test_a_limited_key_may(ask: Ask, proxied: Proxied, line: str, body: str) -> None:
    assert ask(line, body)[0] == "200"
    (asked,) = proxied.upstream.asked
    assert (asked.line, asked.body.decode()) == (f"{line} HTTP/1.1", body)


LEADS_OUT = r"""
/v1/../admin /v1/.. /v1/./a /v1/%2e%2E/admin /v1/..%2fadmin /v1/%2E%2e%2fadmin /v1/..;/admin /v1/a/..\admin
/v1/..%5cadmin /v1/..%c0%afadmin /v1/%c0%ae%c0%ae/admin /v1/..%e0%80%afadmin /v1/%252e%252e%252fadmin
/v1/%25252e%25252e/a /v1/%2525252525252e./a /v1/%u002e%u002e/a /v1/..%3b/a /v1/%ef%bc%8e%ef%bc%8e/a /v1/..%3fa
/v1/..%23a /v1/..%20/a /v1/..%00/a /v1/..%09/a /v1/a#/../b /v1/a%0d%0aHost:%20b /v1/models/org%2F..%2F..%2Fadmin
/v1/;a=b/..;c/d /v1/%ff/a
"""


@pytest.mark.parametrize("path", LEADS_OUT.split())
def test_a_path_that_may_lead_out_is_refused(proxied: Proxied, path: str) -> None:
    status, headers, _ = proxied.send(f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close")
    assert (status.split()[1], headers.get("x-smallfirst-error")) == ("400", "invalid_path")
    assert proxied.upstream.asked == []


@pytest.mark.parametrize(
    "path",
    ["/v1/models/org%2Fname", "/v1/files/a..b", "/v1/a/...", "/v1//a", "/v1/a%20b;c=d", "/v1/100%25", "/v1/%E2%82%AC"],
)
def test_every_other_path_passes_as_it_is(proxied: Proxied, path: str) -> None:
    assert proxied.send(f"GET {path}?a=.. HTTP/1.1\nHost: localhost\nConnection: close")[0].split()[1] == "200"
    assert [asked.line for asked in proxied.upstream.asked] == [f"GET {path}?a=.. HTTP/1.1"]


def test_a_path_of_many_escapes_takes_no_time(proxied: Proxied) -> None:
    path = "/v1/" + "%25" * 15_000
    assert proxied.send(f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close")[0].split()[1] == "200"
    path = "/v1/%" + "25" * 80_000
    assert proxied.send(f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close")[0].split()[1] == "400"


def test_the_list_of_models_shows_a_limited_key_its_own(ask: Ask) -> None:
    status, said = ask("GET /v1/models")
    listed = json.loads(said)
    assert (status, [one["id"] for one in listed["data"]]) == ("200", ["mine", "org/mine"])
    assert "other" not in said.decode()
