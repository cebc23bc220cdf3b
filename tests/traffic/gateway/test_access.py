"""An upstream's word on a credential: it lasts for its time, a refusal ends it, what was refused leaves nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fixtures.waiting import Clock

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.serving.errors import ApiError
from smallfirst.traffic.gateway import access
from smallfirst.traffic.gateway.access import Access, Credentials, check_exposure
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
    image = request((b"host", b"127.0.0.1"), (b"sec-fetch-site", b"cross-site"))
    assert code(access, image) == "origin_not_allowed"
    admitted(Access(everybody=True), request((b"host", b"example.com")))


def test_a_key_names_the_tenant_and_is_not_passed_on(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    _, key = store.create("ada", KeyPolicy(models=("gpt-4o",), requests_per_minute=7))
    access = Access(store)
    upstream = (b"authorization", b"Bearer sk-upstream")
    of_another = f"Bearer {KeyStore(tmp_path / 'other.db').create('ada', KeyPolicy())[1]}".encode()
    for given, left in (
        ([(b"x-smallfirst-key", key.encode()), upstream], [upstream]),
        ([(b"authorization", f"Bearer {key}".encode())], []),
        ([(b"authorization", f"bearer {key}".encode()), (b"x-api-key", key.encode()), upstream], [upstream]),
        ([(b"x-smallfirst-key", key.encode()), (b"authorization", f"Bearer {key}".encode())], []),
        ([(b"x-smallfirst-key", key.encode()), (b"cookie", f"a=1; key={key}".encode()), upstream], [upstream]),
        ([(b"x-smallfirst-key", key.encode()), (b"authorization", of_another)], [(b"authorization", of_another)]),
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


class Sides:
    """Processes over one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.clock, self.made = ledger, Clock(1e9), list[Credentials]()

    async def another(self) -> Credentials:
        self.made.append(Credentials(self.ledger.shared, clock=self.clock))
        await self.made[-1].start()
        return self.made[-1]

    def ask(self, one: Credentials, status: int | None, *headers: tuple[bytes, bytes], **more: str) -> bool:
        """Ask once; the upstream answers with `status`. Return whether a small model might have answered."""
        path, query = more.get("path", "/v1/chat/completions"), more.get("query", "").encode()
        request = GatewayRequest("POST", path, query, [*headers], b"{}", tenant=more.get("tenant", "ada"))
        request.at = self.clock.now
        found = one.accepts(request, more.get("upstream", BIG), more.get("model", "big"))
        if status is not None:
            one.answered(request, more.get("upstream", BIG), status)
        return found

    @property
    def n_writes(self) -> int:
        return self.ledger.shared.version("accepted credentials")


@asynccontextmanager
async def sides_over(ledger: Ledger) -> AsyncIterator[Sides]:
    sides = Sides(ledger)
    try:
        yield sides
    finally:
        for one in sides.made:
            await one.aclose()
        ledger.close()


async def test_a_2xx_is_good_for_its_time_and_a_refusal_ends_it(tmp_path: Path) -> None:
    async with sides_over(Ledger(tmp_path / "ledger.db")) as sides:
        one = await sides.another()
        assert not sides.ask(one, 200, KEY)
        sides.clock.now += 3599
        assert sides.ask(one, None, KEY)
        sides.clock.now += 1
        assert not sides.ask(one, 204, KEY)
        for status in (301, 400, 404, 429, 500, 503):
            assert sides.ask(one, status, KEY)
        for status in (401, 403):
            sides.clock.now += 1
            assert sides.ask(one, status, KEY)
            assert not sides.ask(one, 500, KEY)
            sides.clock.now += 1
            assert not sides.ask(one, 200, KEY)
        asked_before = GatewayRequest(
            "POST", "/v1/chat/completions", b"", [KEY], b"{}", tenant="ada", at=sides.clock.now
        )
        assert one.accepts(asked_before, BIG, "big")
        sides.clock.now += 1
        sides.ask(one, 401, KEY, model="other")  # any refusal of the key
        one.answered(asked_before, BIG, 200)  # an answer to what was asked before does not undo it
        assert not sides.ask(one, None, KEY)


@pytest.mark.parametrize("other", [
    {"headers": [(b"authorization", b"Bearer sk-two")]}, {"headers": []},
    {"headers": [(b"x-api-key", b"Bearer sk-one")]}, {"headers": [KEY, (b"api-key", b"sk-one")]},
    {"headers": [KEY, (b"cookie", b"session=1")]}, {"headers": [KEY, (b"openai-project", b"p")]},
    {"tenant": "bob"}, {"model": "bigger"}, {"path": "/v1/free/chat/completions"}, {"query": "key=1"},
    {"upstream": "https://other.example/v1"},
])  # fmt: skip
async def test_it_is_good_for_nothing_else(tmp_path: Path, other: dict) -> None:
    async with sides_over(Ledger(tmp_path / "ledger.db")) as sides:
        one = await sides.another()
        sides.ask(one, 200, KEY)
        assert sides.ask(one, None, KEY, (b"user-agent", b"any"), (b"x-request-id", b"7"))
        headers = other.pop("headers", [KEY])
        assert not sides.ask(one, 200, *headers, **other)
        assert sides.ask(one, None, *headers, **other)


async def test_what_was_refused_leaves_nothing_and_what_was_accepted_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MOST", 20)

    async with sides_over(Ledger(tmp_path / "ledger.db")) as sides:
        one = await sides.another()
        for n in range(1000):
            sides.ask(one, 401, (b"authorization", b"%d" % n))
        assert not one._known
        for n in range(1000):
            sides.clock.now += 0.001
            sides.ask(one, 200, (b"authorization", b"%d" % n))
            sides.ask(one, 200, KEY, query=f"{n}", path=f"/v1/{n}/chat/completions")
        assert len(one._known) <= 2 * 20
        for n in range(200):
            sides.ask(one, 200, KEY, path=f"/v1/{n}/chat/completions")
        assert max(map(len, one._known.values())) <= 32
        await one._sync()
        assert len(one._known) == 20
        sides.clock.now += 3600
        sides.ask(one, 200, KEY)
        await one._sync()
        assert len(one._known) == 1  # what is too old is forgotten


async def test_a_credential_in_use_is_written_once_in_five_minutes_and_never_itself(tmp_path: Path) -> None:
    async with sides_over(Ledger(tmp_path / "ledger.db")) as sides:
        one = await sides.another()
        for _ in range(3600):
            sides.clock.now += 1
            sides.ask(one, 200, KEY)
            if one._news:
                await one._sync()
        assert sides.n_writes == 12
        stored = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.db*"))
        assert b"accepted credentials" in stored
        assert b"sk-one" not in stored


async def test_processes_learn_from_each_other_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    async with sides_over(Ledger(tmp_path / "ledger.db")) as sides:
        one, two = await sides.another(), await sides.another()
        sides.ask(one, 200, KEY)
        await one._sync()
        assert not sides.ask(two, None, KEY)
        await two._sync()
        assert sides.ask(two, None, KEY)
        assert sides.ask(await sides.another(), None, KEY)
        sides.clock.now += 1
        sides.ask(two, 401, KEY)
        await two._sync()
        await one._sync()
        assert not sides.ask(one, None, KEY)
