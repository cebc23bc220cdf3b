"""What one key may take, counted by a clock that the test moves; and over a real server, with OpenAI's headers."""

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.waiting import Clock

from smallfirst.ledger.database import open_database
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import LedgerAway
from smallfirst.models.protocol import Completion
from smallfirst.serving.auth import REFUSED_S, Bucket, KeyCheck, Quota
from smallfirst.serving.errors import ApiError

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello small world"}]}


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def quota(tmp_path: Path, clock: Clock) -> Callable[..., Quota]:
    """A key's quota; of each call at another process over the same database."""
    return lambda **limits: Quota(KeyPolicy(**limits), "a", open_database(tmp_path / "ledger.db"), clock)


def completion(tokens: int) -> Completion:
    return Completion(
        text="x", answered_by="m", latency_ms=1, cost_usd=0, prompt_tokens=tokens - 1, completion_tokens=1
    )


def in_order() -> None:
    """From now on there is one thread for the database: what is settled is there for the next request."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))


async def refused(context: AbstractAsyncContextManager[Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await context.__aenter__()
    return caught.value


async def test_a_bucket_holds_a_minute_and_fills_evenly(place: Path | str, clock: Clock) -> None:
    with closing(open_database(place)) as database:
        bucket = Bucket("b", 120, database, clock)
        assert await bucket.take(120) == 0
        assert await bucket.take(1) == pytest.approx(0.5)  # two a second
        clock.now += 10
        assert bucket.level == pytest.approx(20)
        assert bucket.wait_s(20) == pytest.approx(0)
        assert bucket.wait_s(500) == pytest.approx(50)  # more than a minute's worth: until it is full
        assert await bucket.take(20) == 0
        clock.now += 3600
        assert bucket.level == 120
        assert await Bucket("b", 10, database, clock).take(11) == 0  # a limit that changed starts full
        assert await Bucket("b", 10, database, clock).take(1) == pytest.approx(12)


async def test_requests_beyond_the_minute_are_refused_and_cost_nothing(quota: Any, clock: Clock) -> None:
    allowance = quota(requests_per_minute=2)

    async def send() -> dict[str, str]:
        async with allowance.request():
            return allowance.headers()

    for _ in range(2):
        await send()
    for _ in range(3):
        error = await refused(allowance.request())
    assert error.status == 429
    assert error.headers == {"retry-after": "30"}
    assert error.body["error"] == {
        "message": "This key may send 2 requests a minute. Try again in 30 s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    clock.now += 30
    assert await send() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    assert allowance.n_in_flight == 0


async def test_tokens_are_taken_by_estimate_and_settled_by_use(quota: Any, clock: Clock) -> None:
    allowance = quota(tokens_per_minute=600)

    def remaining() -> str:
        return allowance.headers()["x-ratelimit-remaining-tokens"]

    in_order()
    async with allowance.tokens(500) as bill:
        assert remaining() == "100"
        with pytest.raises(ApiError, match="600 tokens a minute"):
            await allowance.tokens(101).__aenter__()
        bill.add(completion(40))
        bill.add(completion(20))
    assert remaining() == "540"
    clock.now += REFUSED_S
    async with allowance.tokens(110):
        pass  # no answer: the estimate stands
    assert remaining() == "440"
    async with allowance.tokens(10) as bill:
        bill.add(completion(940))  # 500 into debt: 50 seconds at ten a second
    assert (await refused(allowance.request())).headers == {"retry-after": "50"}
    clock.now += 50
    await allowance.request().__aenter__()


async def test_an_estimate_above_a_minutes_worth_waits_for_a_full_bucket(quota: Any, clock: Clock) -> None:
    allowance = quota(tokens_per_minute=60)
    in_order()
    async with allowance.tokens(1_000) as bill:
        bill.add(completion(30))
    assert allowance.headers()["x-ratelimit-remaining-tokens"] == "30"
    assert (await refused(allowance.tokens(1_000))).headers == {"retry-after": "30"}
    assert (await refused(allowance.tokens(31))).headers == {"retry-after": "1"}  # what was put back is there once only


async def test_requests_at_once_are_bounded_and_given_back_after_a_failure(quota: Any) -> None:
    allowance = quota(max_in_flight=1)
    with suppress(KeyError):
        async with allowance.request():
            with pytest.raises(ApiError, match="1 requests under way"):
                await allowance.request().__aenter__()
            raise KeyError
    async with allowance.request():
        assert allowance.headers() == {}


async def sent(quota: Quota, tokens: int = 0) -> bool:
    try:
        async with quota.request(), quota.tokens(tokens) as bill:
            bill.used = tokens // 2
    except ApiError:
        return False
    return True


@pytest.mark.parametrize("seed", range(2))
async def test_processes_together_never_pass_more_than_the_limit(quota: Any, clock: Clock, seed: int) -> None:
    """Three times the limit of 600 a minute, at three processes unevenly; one is killed in between."""
    draw, quotas, passed = random.Random(seed), [quota(requests_per_minute=600) for _ in range(3)], 0
    in_order()
    for step in range(150):
        clock.now += 0.4
        alive = quotas if step < 100 else quotas[1:]
        passed += sum([await sent(one) for one in draw.choices(alive, weights=[6, 3, 1][-len(alive) :], k=12)])
    most = 600 + 60 * 10  # a full bucket, and a minute
    assert most - 12 - 3 * 10 <= passed <= most  # a process may hold a second's worth


async def test_what_is_not_used_is_there_for_other_processes_and_a_debt_holds_for_all(quota: Any, clock: Clock) -> None:
    first, second = (quota(requests_per_minute=60, tokens_per_minute=6_000) for _ in range(2))
    in_order()
    assert await sent(first, 5_000)
    assert await sent(second, 3_000)
    assert second.headers()["x-ratelimit-remaining-requests"] == "58"
    async with first.tokens(100) as bill:
        bill.used = 7_000
    with pytest.raises(ApiError, match="6000 tokens a minute"):
        await second.tokens(101).__aenter__()  # it holds a second's worth
    assert not await sent(second)  # it knows of the debt now, before a body is read


def test_who_is_refused_all_the_time_asks_the_database_once_a_second(quota: Any, clock: Clock) -> None:
    one, draws = quota(requests_per_minute=1), []
    draw = one._requests._draw
    one._requests._draw = lambda *units: draws.append(units) or draw(*units)
    assert [asyncio.run(sent(one)) for _ in range(50)] == [True] + [False] * 49
    assert len(draws) == 2
    clock.now += 60
    assert asyncio.run(sent(one))


def test_without_its_database_a_limited_key_is_refused_before_any_work(quota: Any, tmp_path: Path) -> None:
    one = quota(requests_per_minute=10)
    one._requests._database.close()
    for file in tmp_path.iterdir():
        file.unlink()
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(LedgerAway):
        asyncio.run(one.request().__aenter__())


def test_a_rotated_key_goes_on_with_what_is_left_and_changed_terms_count_at_once(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "ledger.db")
    _, secret = store.create("desk", KeyPolicy(requests_per_minute=2))

    async def caller(key: str) -> Any:
        await check.refresh()
        return check.caller(key)

    check = KeyCheck(store)
    assert asyncio.run(sent(asyncio.run(caller(secret)).quota))
    _, rotated = store.rotate("desk")
    again = asyncio.run(caller(rotated))
    assert [asyncio.run(sent(again.quota)) for _ in range(2)] == [True, False]


def test_a_limited_key_gets_429_with_openais_headers_and_others_go_on(start, tmp_path: Path, label) -> None:
    key_store = KeyStore(tmp_path / "keys.db")
    _, slow = key_store.create("slow", KeyPolicy(requests_per_minute=2, tokens_per_minute=100_000))
    _, free = key_store.create("free", KeyPolicy())
    server = start(key_store=key_store, m=label)
    url = f"{server.url}/v1/chat/completions"

    def post(key: str) -> httpx.Response:
        return httpx.post(url, json=BODY, headers={"authorization": f"Bearer {key}"})

    answers = [post(slow) for _ in range(3)]
    assert [one.status_code for one in answers] == [200, 200, 429]
    assert [one.headers["x-ratelimit-remaining-requests"] for one in answers] == ["1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "100000"
    assert int(answers[2].headers["retry-after"]) >= 1
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert answers[2].headers["x-request-id"].startswith("chatcmpl-")
    free_answer = post(free)
    assert free_answer.status_code == 200
    assert not [name for name in free_answer.headers if name.startswith("x-ratelimit")]
