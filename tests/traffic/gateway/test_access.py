"""An upstream's word on a credential: it lasts for its time, a refusal ends it, what was refused leaves nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.serving.errors import ApiError
from smallfirst.traffic.gateway import access
from smallfirst.traffic.gateway.access import Access, Credentials, check_exposure, may_ask
from smallfirst.traffic.gateway.http import GatewayRequest


def request(*headers: tuple[bytes, bytes], path: str = "/v1/chat/completions") -> GatewayRequest:
    return GatewayRequest("POST", path, b"", list(headers), b'{"model": "gpt-4o"}')


def code(access: Access, asked: GatewayRequest) -> str:
    with pytest.raises(ApiError) as refused:
        admitted(access, asked)
    return refused.value.code or ""


def admitted(access: Access, asked: GatewayRequest) -> tuple[str, ...]:
    async def admit() -> tuple[str, ...]:
        async with access.admit(asked) as models:
            return models

    return asyncio.run(admit())


def test_without_keys_only_this_machine_is_served() -> None:
    access = Access()
    admitted(access, request((b"host", b"localhost:8080")))
    assert code(access, request((b"host", b"example.com"))) == "host_not_allowed"
    page = request((b"host", b"127.0.0.1"), (b"origin", b"https://example.com"))
    assert code(access, page) == "origin_not_allowed"
    admitted(Access(everybody=True), request((b"host", b"example.com")))


def test_a_key_names_the_tenant_and_is_not_passed_on(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    _, key = store.create("ada", KeyPolicy(models=("gpt-4o",), requests_per_minute=3))
    access = Access(store)
    upstream = (b"authorization", b"Bearer sk-upstream")
    for given, left in (
        ([(b"x-smallfirst-key", key.encode()), upstream], [upstream]),
        ([(b"authorization", f"Bearer {key}".encode())], []),
        ([(b"x-api-key", key.encode())], []),
    ):
        asked = request(*given)
        assert admitted(access, asked) == ("gpt-4o",)
        assert (asked.tenant, asked.headers) == ("ada", left)
    assert code(access, request((b"x-api-key", key.encode()))) == "rate_limit_exceeded"
    assert code(access, request(upstream)) == "invalid_api_key"
    assert code(access, request((b"x-smallfirst-key", b"sf-wrong"))) == "invalid_api_key"
    assert may_ask(request(), ("gpt-4o",))
    assert not may_ask(request(), ("other",))


def test_other_machines_need_a_key(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    check_exposure("127.0.0.1", store, everybody=False)
    check_exposure("0.0.0.0", store, everybody=True)
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        check_exposure("0.0.0.0", store, everybody=False)
    store.create("ada", KeyPolicy())
    check_exposure("0.0.0.0", store, everybody=False)


BIG = "https://big.example/v1"
KEY = (b"authorization", b"Bearer sk-one")


class Asking:
    """Credentials under a clock of their own."""

    def __init__(self) -> None:
        self.now = 1e9
        self.credentials = Credentials(clock=lambda: self.now)

    def ask(self, status: int | None, *headers: tuple[bytes, bytes], **more: str) -> bool:
        """Ask once; the upstream answers with `status`. Return whether a small model might have answered."""
        path, query = more.get("path", "/v1/chat/completions"), more.get("query", "").encode()
        request = GatewayRequest("POST", path, query, [*headers], b"{}", tenant=more.get("tenant", "ada"), at=self.now)
        found = self.credentials.accepts(request, more.get("upstream", BIG), more.get("model", "big"))
        if status is not None:
            self.credentials.answered(request, more.get("upstream", BIG), status)
        return found


@pytest.fixture
def one() -> Asking:
    return Asking()


def test_a_2xx_is_good_for_its_time_and_a_refusal_ends_it(one: Asking) -> None:
    assert not one.ask(200, KEY)
    one.now += 3599
    assert one.ask(None, KEY)
    one.now += 1
    assert not one.ask(204, KEY)
    for status in (301, 400, 404, 429, 500, 503):
        assert one.ask(status, KEY)
    for status in (401, 403):
        one.now += 1
        assert one.ask(status, KEY)
        assert not one.ask(500, KEY)
        one.now += 1
        assert not one.ask(200, KEY)
    asked_before = GatewayRequest("POST", "/v1/chat/completions", b"", [KEY], b"{}", tenant="ada", at=one.now)
    assert one.credentials.accepts(asked_before, BIG, "big")
    one.now += 1
    one.ask(401, KEY, model="other")  # any refusal of the key
    one.credentials.answered(asked_before, BIG, 200)  # an answer to what was asked before does not undo it
    assert not one.ask(None, KEY)


@pytest.mark.parametrize(
    "other",
    [
        {"headers": [(b"authorization", b"Bearer sk-two")]},
        {"headers": []},
        {"headers": [(b"x-api-key", b"Bearer sk-one")]},
        {"headers": [KEY, (b"api-key", b"sk-one")]},
        {"headers": [KEY, (b"cookie", b"session=1")]},
        {"headers": [KEY, (b"openai-project", b"p")]},
        {"tenant": "bob"},
        {"model": "bigger"},
        {"path": "/v1/free/chat/completions"},
        {"query": "key=1"},
        {"upstream": "https://other.example/v1"},
    ],
)
def test_it_is_good_for_nothing_else(one: Asking, other: dict) -> None:
    one.ask(200, KEY)
    assert one.ask(None, KEY, (b"user-agent", b"any"), (b"x-request-id", b"7"))
    headers = other.pop("headers", [KEY])
    assert not one.ask(200, *headers, **other)
    assert one.ask(None, *headers, **other)


def test_what_was_refused_leaves_nothing_and_what_was_accepted_is_bounded_and_no_key(
    one: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MOST", 20)
    kept, refused = one.credentials._accepted, one.credentials._refused
    for n in range(100):
        one.ask(401, (b"authorization", b"%d" % n))
    assert not kept
    assert not refused
    for n in range(100):
        one.ask(200, (b"authorization", b"%d" % n))
        one.ask(403, (b"authorization", b"%d" % n))
        one.ask(200, KEY, path=f"/v1/{n}/chat/completions")
    assert (len(kept), max(map(len, kept.values()))) == (20, access.MOST_USES)
    assert refused.keys() <= kept.keys()
    assert one.ask(None, KEY, path="/v1/99/chat/completions")
    assert not one.ask(None, KEY, path="/v1/0/chat/completions")
    assert "sk-one" not in repr(kept)
