"""What one key may take, counted by a clock that the test moves; and over a real server, with OpenAI's headers."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from smallfirst.models.protocol import Completion
from smallfirst.serving.auth.keys import KeyPolicy, KeyStore
from smallfirst.serving.auth.rate_limits import LEASE_S, LeasedBucket, Quota, Quotas
from smallfirst.serving.ledger.shared_state import MemoryState
from smallfirst.serving.openai.errors import ApiError

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello small world"}]}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def completion(tokens: int) -> Completion:
    return Completion(
        text="x", answered_by="m", latency_ms=1, cost_usd=0, prompt_tokens=tokens - 1, completion_tokens=1
    )


def bucket_of(per_minute: int, clock: Clock) -> LeasedBucket:
    return LeasedBucket("b", per_minute, MemoryState(clock), clock)


def refused(context: AbstractAsyncContextManager[Any]) -> ApiError:
    async def enter() -> None:
        async with context:
            raise AssertionError

    with pytest.raises(ApiError) as caught:
        asyncio.run(enter())
    return caught.value


def test_a_bucket_holds_a_minute_and_fills_evenly() -> None:
    clock = Clock()
    bucket = bucket_of(120, clock)
    assert asyncio.run(bucket.take(120)) == 0
    assert asyncio.run(bucket.take(1)) == pytest.approx(0.5)  # two a second
    clock.now_s += 10
    assert bucket.level == pytest.approx(20)
    assert bucket.wait_s(20) == pytest.approx(0)
    assert bucket.wait_s(500) == pytest.approx(50)  # more than a minute's worth: until it is full
    clock.now_s += 3600
    assert bucket.level == 120


def test_requests_beyond_the_minute_are_refused_and_cost_nothing() -> None:
    clock = Clock()
    allowance = Quota(KeyPolicy(requests_per_minute=2), clock)

    async def send() -> dict[str, str]:
        async with allowance.request():
            return allowance.headers()

    for _ in range(2):
        asyncio.run(send())
    for _ in range(3):
        error = refused(allowance.request())
    assert error.status == 429
    assert error.headers == {"retry-after": "30"}
    assert error.body["error"] == {
        "message": "This key may send 2 requests a minute. Try again in 30 s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    clock.now_s += 30
    assert asyncio.run(send()) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    assert allowance.n_in_flight == 0


def test_tokens_are_taken_by_estimate_and_settled_by_use() -> None:
    clock = Clock()
    allowance = Quota(KeyPolicy(tokens_per_minute=600), clock)

    def remaining() -> str:
        return allowance.headers()["x-ratelimit-remaining-tokens"]

    async def use() -> None:
        async with allowance.tokens(500) as bill:
            assert remaining() == "100"
            with pytest.raises(ApiError, match="600 tokens a minute"):
                await allowance.tokens(101).__aenter__()
            bill.add(completion(40))
            bill.add(completion(20))
        assert remaining() == "540"
        async with allowance.tokens(100):
            pass  # no answer: the estimate stands
        assert remaining() == "440"
        async with allowance.tokens(10) as bill:
            bill.add(completion(940))  # 500 into debt: 50 seconds at ten a second
        await allowance.tick()

    asyncio.run(use())
    assert refused(allowance.request()).headers == {"retry-after": "50"}
    clock.now_s += 50
    asyncio.run(allowance.request().__aenter__())


def test_an_estimate_above_a_minutes_worth_waits_for_a_full_bucket() -> None:
    clock = Clock()
    allowance = Quota(KeyPolicy(tokens_per_minute=60), clock)

    async def use() -> None:
        async with allowance.tokens(1_000) as bill:
            bill.add(completion(30))

    asyncio.run(use())
    assert allowance.headers()["x-ratelimit-remaining-tokens"] == "30"
    assert refused(allowance.tokens(1_000)).headers == {"retry-after": "30"}
    assert refused(allowance.tokens(31)).headers == {"retry-after": "1"}  # what was put back is there once only


def test_requests_at_once_are_bounded_and_given_back_after_a_failure() -> None:
    allowance = Quota(KeyPolicy(max_in_flight=1), Clock())

    async def fail_inside() -> None:
        async with allowance.request():
            with pytest.raises(ApiError, match="1 requests under way"):
                await allowance.request().__aenter__()
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(fail_inside())

    async def again() -> None:
        async with allowance.request():
            assert allowance.headers() == {}

    asyncio.run(again())


def test_each_key_has_its_own_allowance_until_its_terms_change() -> None:
    async def look() -> None:
        allowances = Quotas(Clock())
        mine = allowances.of("a", KeyPolicy(max_in_flight=1))
        assert allowances.of("a", KeyPolicy(max_in_flight=1)) is mine
        assert allowances.of("b", KeyPolicy(max_in_flight=1)) is not mine
        assert allowances.of("a", KeyPolicy(max_in_flight=2)) is not mine

    asyncio.run(look())


def of_processes(policy: KeyPolicy, clock: Clock, n: int) -> list[Quota]:
    """One key's quota in several processes over one database."""
    state = MemoryState(clock)
    return [Quota(policy, clock, state=state, id="a", process=f"p{i}") for i in range(n)]


async def sent(quota: Quota, tokens: int = 0) -> bool:
    try:
        async with quota.request(), quota.tokens(tokens) as bill:
            bill.settle(tokens // 2)
    except ApiError:
        return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_processes_together_never_pass_more_than_the_limit_and_refuse_what_lies_in_blocks_at_most(seed: int) -> None:
    """Ten times the limit of 600 a minute for two minutes, at three processes unevenly; one is killed in between."""
    draw, clock = random.Random(seed), Clock()
    quotas, passed = of_processes(KeyPolicy(requests_per_minute=600), clock, 3), 0

    async def work() -> None:
        nonlocal passed
        for step in range(1_200):
            clock.now_s += 0.1
            alive = quotas if step < 600 else quotas[1:]
            for quota in draw.choices(alive, weights=[6, 3, 1][-len(alive) :], k=10):
                passed += await sent(quota)
            if step % 10 == 0:
                for quota in alive:
                    await quota.tick()

    asyncio.run(work())
    most = 600 + 120 * 10  # a full bucket, and two minutes
    assert most - 3 * 10 <= passed <= most  # a block is a second's worth


def test_what_is_not_used_goes_to_the_other_processes_and_a_debt_holds_for_all() -> None:
    clock = Clock()
    first, second = of_processes(KeyPolicy(requests_per_minute=60_000, tokens_per_minute=6_000), clock, 2)

    async def work() -> None:
        assert await sent(first)
        assert first._requests is not None
        assert first._requests._block == 999  # of a second's thousand
        await first.tick()
        assert first._requests._block == 999  # it was used since
        assert await first.tick() is False  # not since, and all is given back
        assert await sent(second)
        assert second.headers()["x-ratelimit-remaining-requests"] == "59998"
        async with first.tokens(100) as bill:
            bill.settle(7_000)
        await first.tick()
        with pytest.raises(ApiError, match="6000 tokens a minute"):
            await second.tokens(1).__aenter__()
        assert not await sent(second)  # it knows of the debt now, before a body is read

    asyncio.run(work())


def test_places_are_counted_over_all_processes_and_come_back_from_one_that_was_killed() -> None:
    clock = Clock()
    first, second = of_processes(KeyPolicy(max_in_flight=3), clock, 2)

    async def work() -> None:
        held = [first.request(), first.request(), second.request()]
        for one in held:
            await one.__aenter__()
        assert not await sent(first)
        assert not await sent(second)
        await held[0].__aexit__(None, None, None)
        assert not await sent(second)  # the place is the first one's until it gives it back
        await first.tick()
        assert await sent(second)
        for _ in range(10):  # longer than a lease, and kept
            clock.now_s += 5
            await second.tick()
            await first.tick()
        assert await sent(second)
        clock.now_s += LEASE_S + 1  # the first was killed
        for _ in range(2):
            await second.request().__aenter__()
        assert not await sent(second)

    asyncio.run(work())


def test_a_limited_key_gets_429_with_openais_headers_and_others_go_on(start, tmp_path: Path, label) -> None:
    key_store = KeyStore(tmp_path / "keys.json")
    _, slow = key_store.create("slow", KeyPolicy(requests_per_minute=2, tokens_per_minute=100_000))
    _, free = key_store.create("free", KeyPolicy())
    server = start(key_store=key_store, m=label)
    url = f"{server.url}/v1/chat/completions"

    def post(key: str) -> httpx.Response:
        return httpx.post(url, json=BODY, headers={"authorization": f"Bearer {key}"})

    first = post(slow)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-limit-tokens"] == "100000"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert post(slow).status_code == 200
    refused = post(slow)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["x-request-id"].startswith("chatcmpl-")
    free_answer = post(free)
    assert free_answer.status_code == 200
    assert not [name for name in free_answer.headers if name.startswith("x-ratelimit")]


def test_a_key_has_so_many_requests_at_once(start, tmp_path: Path, echo) -> None:
    key_store = KeyStore(tmp_path / "keys.json")
    _, one = key_store.create("one", KeyPolicy(max_in_flight=1))
    server = start(key_store=key_store, m=echo)
    url, head = f"{server.url}/v1/chat/completions", {"authorization": f"Bearer {one}"}
    echo.gate.clear()
    answers: list[int] = []
    waiting = threading.Thread(
        target=lambda: answers.append(httpx.post(url, json=BODY, headers=head, timeout=20).status_code)
    )
    waiting.start()
    assert echo.started.wait(5)
    assert httpx.get(f"{server.url}/v1/models", headers=head).status_code == 429
    echo.gate.set()
    waiting.join()
    assert answers == [200]
    assert httpx.get(f"{server.url}/v1/models", headers=head).status_code == 200
