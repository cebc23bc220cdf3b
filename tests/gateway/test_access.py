import asyncio
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.gateway.access import Access, check_exposure, may_ask
from smallfirst.gateway.http import GatewayRequest
from smallfirst.serving.auth.keys import KeyPolicy, KeyStore
from smallfirst.serving.openai.errors import ApiError


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
    store = KeyStore(tmp_path / "keys.json")
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
    assert access.one_tenant()
    store.create("bob", KeyPolicy())
    assert not access.one_tenant()
    store.revoke("ada")
    assert access.one_tenant()
    assert Access().one_tenant()
    assert may_ask(request(), ("gpt-4o",))
    assert not may_ask(request(), ("other",))


def test_what_the_proxy_does_is_for_admins(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    _, user = store.create("user", KeyPolicy())
    _, admin = store.create("admin", KeyPolicy(role="admin"))
    path = "/v1/smallfirst/tasks"
    assert code(Access(store), request((b"x-smallfirst-key", user.encode()), path=path)) == "admin_only"
    admitted(Access(store), request((b"x-smallfirst-key", admin.encode()), path=path))


def test_other_machines_need_a_key(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    check_exposure("127.0.0.1", store, everybody=False)
    check_exposure("0.0.0.0", store, everybody=True)
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        check_exposure("0.0.0.0", store, everybody=False)
    store.create("ada", KeyPolicy())
    check_exposure("0.0.0.0", store, everybody=False)
