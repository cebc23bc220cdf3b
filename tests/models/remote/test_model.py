"""An OpenAI-compatible endpoint: answers, streams, prices, and every way in which it can fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pydantic
import pytest

from smallfirst.base.errors import (
    AnswerLost,
    BadAnswer,
    ConfigError,
    ModelError,
    PriceUnknown,
    RateLimited,
    Unauthorised,
    Unavailable,
)
from smallfirst.models.pricing import MachinePrice, PriceBook, TokenPrice
from smallfirst.models.protocol import (
    Chunk,
    Completion,
    Model,
    Request,
    ResponseFormat,
    Token,
)
from smallfirst.models.remote.client import retry_after_s
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.http import ConnectionBroken, NotConnected, ResponseTimeout
from smallfirst.models.remote.model import EndpointModel

BASE = "https://api.example.com/v1"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
BOOK = PriceBook(tokens={"big": TokenPrice(input_usd_per_mtok=2, output_usd_per_mtok=10)})
ANSWER = {
    "choices": [{"message": {"content": "card_lost"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 5},
}


class Response:
    """A response that is there already."""

    def __init__(self, status: int = 200, *, text: str = "", headers: dict[str, str] | None = None) -> None:
        self.status, self.text, self.headers = status, text, headers or {}

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    async def read(self, *, max_bytes: int) -> bytes:
        return self.text.encode()

    async def read_start(self, n_bytes: int) -> bytes:
        return self.text.encode()[:n_bytes]

    async def events(self, *, max_bytes: int) -> AsyncIterator[str]:
        for line in self.text.split("\n"):
            if line.startswith("data:"):
                yield line.removeprefix("data:").strip()

    async def aclose(self) -> None:
        pass


class Api:
    """A scripted endpoint: gives its responses in turn, and the last one for ever."""

    def __init__(self, *responses: Response | Exception) -> None:
        self.responses = list(responses)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.waits_s: list[float] = []

    async def post(self, path: str, body: bytes) -> Response:
        self.requests.append((path, json.loads(body)))
        response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        if isinstance(response, Exception):
            raise response
        return response

    async def aclose(self) -> None:
        pass

    async def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)

    def model(self, book: PriceBook = BOOK, **settings: Any) -> EndpointModel:
        config = EndpointConfig(**{"base_url": BASE, "model": "big", **settings})
        return EndpointModel(config, book, connect=lambda config, key: self, sleep=self.sleep)

    def body(self) -> dict[str, Any]:
        return self.requests[-1][1]


class Gate(Api):
    """An endpoint that answers once `n` requests are in flight."""

    def __init__(self, n: int) -> None:
        super().__init__(ok())
        self.n, self.in_flight, self.most, self.full = n, 0, 0, asyncio.Event()

    async def post(self, path: str, body: bytes) -> Response:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        if self.in_flight == self.n:
            self.full.set()
        await self.full.wait()
        self.in_flight -= 1
        return await super().post(path, body)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")


def ok(body: Any = ANSWER) -> Response:
    return Response(text=json.dumps(body))


def ask(model: Model, text: str = "I lost my card") -> Completion:
    return asyncio.run(model.complete(Request.ask(text)))


def failing(model: Model, kind: type[ModelError]) -> str:
    with pytest.raises(kind) as caught:
        ask(model)
    return str(caught.value)


def chunks(model: Model) -> list[Chunk]:
    async def collect() -> list[Chunk]:
        return [chunk async for chunk in model.stream(Request.ask("I lost my card"))]

    return asyncio.run(collect())


def events(*values: Any, done: bool = True) -> Response:
    lines = [f"data: {json.dumps(value)}\n\n" for value in values]
    return Response(text=": hello\n\n" + "".join(lines) + "data: [DONE]\n\n" * done)


BUSY = Response(503, headers={"retry-after": "1"})

# --- answers -------------------------------------------------------------------------------------


def test_extra_body_adds_and_takes_out_settings() -> None:
    api = Api(ok())
    extra = {"temperature": None, "reasoning_effort": "low"}
    ask(api.model(extra_body=extra, max_tokens_key="max_completion_tokens"))
    assert "temperature" not in api.body()
    assert api.body()["reasoning_effort"] == "low"
    assert api.body()["max_completion_tokens"] == 256


def test_no_more_requests_than_allowed_are_in_flight() -> None:
    async def six() -> int:
        gate = Gate(2)
        model = gate.model(max_concurrency=2)
        await asyncio.gather(*(model.complete(Request.ask("Hi")) for _ in range(6)))
        return gate.most

    assert asyncio.run(six()) == 2


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (
            {"response_format": ResponseFormat(kind="json_schema", name="place", json_schema=SCHEMA, strict=True)},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "place", "schema": SCHEMA, "strict": True},
                }
            },
        ),
        ({"response_format": ResponseFormat(kind="json_object")}, {"response_format": {"type": "json_object"}}),
        ({"logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"logprobs": 0}, {"logprobs": True}),
        ({"max_tokens": 9, "stop": ("\n",), "seed": 7}, {"max_tokens": 9, "stop": ["\n"], "seed": 7}),
    ],
)
def test_request_is_sent_as_openai_writes_it(wanted: dict[str, Any], sent: dict[str, Any]) -> None:
    api = Api(ok())
    asyncio.run(api.model().complete(Request.ask("Hi").model_copy(update=wanted)))
    plain = {
        "model": "big",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 256,
        "temperature": 0.0,
    }
    assert api.requests == [("/chat/completions", plain | sent)]


LOGPROBS = {
    "content": [
        {"token": "ca", "logprob": -0.5, "bytes": [99, 97], "top_logprobs": [{"token": "ca", "logprob": -0.5}]},
        {"token": "fé", "logprob": -1.5, "bytes": None, "top_logprobs": []},
    ]
}
TOKENS = (
    Token(text="ca", logprob=-0.5, octets=(99, 97), top=(("ca", -0.5),)),
    Token(text="fé", logprob=-1.5, octets=(102, 195, 169)),
)


def test_token_probabilities_of_a_stream_come_with_their_pieces_and_all_with_the_end() -> None:
    first, second = ({"content": [one]} for one in LOGPROBS["content"])
    api = Api(
        events(
            {"choices": [{"delta": {"content": "ca"}, "logprobs": first}]},
            {"choices": [{"delta": {"content": "fé"}, "logprobs": second, "finish_reason": "stop"}]},
            {"choices": [], "usage": ANSWER["usage"]},
        )
    )
    *pieces, last = chunks(api.model())
    assert [piece.tokens for piece in pieces] == [TOKENS[:1], TOKENS[1:]]
    assert last.completion is not None
    assert last.completion.tokens == TOKENS


# --- streams -------------------------------------------------------------------------------------


def test_stream_gives_pieces_and_then_the_completion() -> None:
    api = Api(
        events(
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "card_"}}]},
            {"choices": [{"delta": {"content": "lost"}}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 5}},
        )
    )
    *pieces, last = chunks(api.model())
    assert [piece.text for piece in pieces] == ["card_", "lost"]
    assert all(piece.completion is None for piece in pieces)
    assert last.completion is not None
    assert last.completion.text == "card_lost"
    assert last.completion.cost_usd == pytest.approx(0.00205)
    assert api.body()["stream_options"] == {"include_usage": True}


def test_error_inside_a_stream_is_raised() -> None:
    api = Api(events({"error": {"message": "out of memory"}}))
    with pytest.raises(Unavailable, match="error while answering"):
        chunks(api.model())


# --- failures ------------------------------------------------------------------------------------

CHAT = f"{BASE}/chat/completions"


def test_retry_waits_as_long_as_the_endpoint_asks() -> None:
    api = Api(Response(429, headers={"retry-after": "7"}), Response(429), ok())
    assert ask(api.model()).text == "card_lost"
    asked, own = api.waits_s
    assert asked == 7
    assert 0.5 <= own <= 1.0  # second wait: 0.5 s doubled, times a random 0.5 to 1


def test_retry_after_beyond_the_timeout_ends_the_attempts() -> None:
    api = Api(Response(429, headers={"retry-after": "61"}))
    failing(api.model(), RateLimited)
    assert (len(api.requests), api.waits_s) == (1, [])


@pytest.mark.parametrize(
    ("response", "kind", "n_requests", "message"),
    [
        (
            Response(401, text='{"error": "bad key sk-secret"}'),
            Unauthorised,
            1,
            f'{CHAT} refused the key (HTTP 401): {{"error": "bad key •••"}}\n'
            "  next: put a key that may use big into the variable OPENAI_API_KEY",
        ),
        (
            Response(429, text="slow down"),
            RateLimited,
            4,
            f"{CHAT} asks to slow down (HTTP 429) after 4 tries: slow down\n"
            "  next: wait a while, or lower max_concurrency",
        ),
        (
            BUSY,
            Unavailable,
            4,
            f"{CHAT} is unavailable: HTTP 503 after 4 tries: (nothing)\n  next: see if it is up: curl {BASE}/models",
        ),
        (Response(425), Unavailable, 4, "is unavailable: HTTP 425"),
        (NotConnected("refused"), Unavailable, 4, f"{CHAT} is unavailable: refused after 4 tries"),
        (ConnectionBroken("hung up"), AnswerLost, 1, f"{CHAT} took the request and gave no answer: hung up"),
        *((Response(status), AnswerLost, 1, f"HTTP {status}: (nothing)") for status in (408, 500, 502, 503, 504, 529)),
        (ResponseTimeout(), AnswerLost, 1, "no answer within 60 s"),
        (Response(307), BadAnswer, 1, "a redirect, which is not followed"),
        (
            Response(404, text="none for ann@example.com"),
            BadAnswer,
            1,
            "refused the request (HTTP 404): none for [EMAIL]",
        ),
        *(
            (
                Response(text=content),
                BadAnswer,
                1,
                f"{CHAT} answered with something that is not a chat completion ({reason}): {content}\n"
                "  next: check that base_url ends where the API begins, usually /v1",
            )
            for content, reason in (
                ("<html>hello</html>", "body: Invalid JSON: expected value at line 1 column 1"),
                ("{}", "no message"),
                ('{"choices": []}', "no message"),
                ('{"choices": [{"message": 3}]}', "choices.0.message: Input should be an object"),
            )
        ),
    ],
)
def test_failure_says_what_happened_and_is_retried_only_where_that_is_safe(
    response: Response | Exception, kind: type[ModelError], n_requests: int, message: str
) -> None:
    api = Api(response)
    assert message in failing(api.model(), kind)
    assert len(api.requests) == n_requests


# --- money and settings --------------------------------------------------------------------------


def test_unknown_price_fails_before_the_first_call() -> None:
    api = Api(ok())
    with pytest.raises(PriceUnknown, match='no price for "our-70b"'):
        api.model(model="our-70b")
    assert api.requests == []


def test_loopback_without_a_token_price_costs_machine_time() -> None:
    book = PriceBook(machine=MachinePrice(usd_per_hour=3.6, utilisation=1))  # $0.001 per second
    api = Api(ok({"choices": ANSWER["choices"]}))
    completion = ask(api.model(book, base_url="http://127.0.0.1:9/v1", model="our-70b"))
    assert completion.cost_usd == pytest.approx(completion.latency_ms / 1000 * 0.001)


def test_requests_side_by_side_share_the_machine() -> None:
    book = PriceBook(machine=MachinePrice(usd_per_hour=3.6, utilisation=1))

    async def two() -> list[Completion]:
        model = Gate(2).model(book, base_url="http://localhost:9/v1", model="our-70b")
        return await asyncio.gather(*(model.complete(Request.ask("Hi")) for _ in range(2)))

    first, second = asyncio.run(two())
    assert first.cost_usd == pytest.approx(first.latency_ms / 1000 * 0.001)
    assert second.cost_usd == pytest.approx(second.latency_ms / 1000 * 0.001 / 2)


@pytest.mark.parametrize("url", ["api.example.com/v1", "ftp://a/v1", "https://me:pw@a/v1", "http://a:b/v1"])
def test_unusable_address_is_refused(url: str) -> None:
    with pytest.raises(pydantic.ValidationError):
        EndpointConfig(base_url=url, model="big")


def test_retry_after_may_be_a_date() -> None:
    past = datetime.now(UTC) - timedelta(seconds=30)
    assert retry_after_s(format_datetime(past, usegmt=True)) == 0
    assert retry_after_s("Wed, 01 Jan 2200 00:00:00") > 1e9
    assert retry_after_s("soon") is None


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="needs a key, and the variable BIG_KEY is not set"):
        Api(ok()).model(api_key_env="BIG_KEY")
