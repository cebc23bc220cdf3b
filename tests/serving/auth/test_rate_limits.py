"""What one key may take, counted by a clock that the test moves; and over a real server, with OpenAI's headers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from smallfirst.models.protocol import Completion
from smallfirst.serving.auth.keys import KeyPolicy, KeyStore
from smallfirst.serving.auth.rate_limits import Quota, Quotas, TokenBucket
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


def test_a_bucket_holds_a_minute_and_fills_evenly() -> None:
    clock = Clock()
    bucket = TokenBucket(120, clock)
    bucket.take(120)
    assert bucket.wait_s(1) == pytest.approx(0.5)  # two a second
    clock.now_s += 10
    assert bucket.level == pytest.approx(20)
    assert bucket.wait_s(20) == pytest.approx(0)
    assert bucket.wait_s(500) == pytest.approx(50)  # more than a minute's worth: until it is full
    clock.now_s += 3600
    assert bucket.level == 120


def test_requests_beyond_the_minute_are_refused_and_cost_nothing() -> None:
    clock = Clock()
    allowance = Quota(KeyPolicy(requests_per_minute=2), clock)
    for _ in range(2):
        with allowance.request():
            pass
    for _ in range(3):
        with pytest.raises(ApiError) as caught, allowance.request():
            raise AssertionError
    assert caught.value.status == 429
    assert caught.value.headers == {"retry-after": "30"}
    assert caught.value.body["error"] == {
        "message": "This key may send 2 requests a minute. Try again in 30 s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    clock.now_s += 30
    with allowance.request():
        assert allowance.headers() == {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1m0s",
        }
    assert allowance.n_in_flight == 0


def test_tokens_are_taken_by_estimate_and_settled_by_use() -> None:
    clock = Clock()
    allowance = Quota(KeyPolicy(tokens_per_minute=600), clock)
    with allowance.tokens(500) as bill:
        assert allowance.headers()["x-ratelimit-remaining-tokens"] == "100"
        with pytest.raises(ApiError, match="600 tokens a minute"), allowance.tokens(101):
            raise AssertionError
        bill.add(completion(40))
        bill.add(completion(20))
    assert allowance.headers()["x-ratelimit-remaining-tokens"] == "540"
    with allowance.tokens(100):
        pass  # no answer: the estimate stands
    assert allowance.headers()["x-ratelimit-remaining-tokens"] == "440"
    with allowance.tokens(10) as bill:
        bill.add(completion(940))  # 500 into debt: 50 seconds at ten a second
    with pytest.raises(ApiError) as caught, allowance.request():
        raise AssertionError
    assert caught.value.headers == {"retry-after": "50"}
    clock.now_s += 50
    with allowance.request():
        pass


def test_an_estimate_above_a_minutes_worth_waits_for_a_full_bucket() -> None:
    clock = Clock()
    allowance = Quota(KeyPolicy(tokens_per_minute=60), clock)
    with allowance.tokens(1_000) as bill:
        bill.add(completion(30))
    assert allowance.headers()["x-ratelimit-remaining-tokens"] == "30"
    with pytest.raises(ApiError) as caught, allowance.tokens(1_000):
        raise AssertionError
    assert caught.value.headers == {"retry-after": "30"}


def test_requests_at_once_are_bounded_and_given_back_after_a_failure() -> None:
    allowance = Quota(KeyPolicy(max_in_flight=1), Clock())

    def fail_inside() -> None:
        with allowance.request():
            with pytest.raises(ApiError, match="1 requests under way"), allowance.request():
                raise AssertionError
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    with allowance.request():
        assert allowance.headers() == {}


def test_each_key_has_its_own_allowance_until_its_terms_change() -> None:
    allowances = Quotas(Clock())
    mine = allowances.of("a", KeyPolicy(max_in_flight=1))
    assert allowances.of("a", KeyPolicy(max_in_flight=1)) is mine
    assert allowances.of("b", KeyPolicy(max_in_flight=1)) is not mine
    assert allowances.of("a", KeyPolicy(max_in_flight=2)) is not mine


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
