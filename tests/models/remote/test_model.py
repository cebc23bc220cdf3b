"""An OpenAI-compatible endpoint: answers, streams, prices, and the words for what fails."""

import asyncio
import json
import socket
import threading
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
from smallfirst.models.pricing import MachinePrice, PriceBook
from smallfirst.models.protocol import Chunk, Completion, Model, Request, ResponseFormat, Token
from smallfirst.models.remote.client import retry_after_s
from smallfirst.models.remote.config import EndpointConfig
from tests.models.remote.test_client import BUSY, OK, Deed, Server, reply, server

__all__ = ["server"]

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 5}


def events(*values: Any) -> Deed:
    lines = [f"data: {json.dumps(value)}\n\n" for value in values]
    return reply("200 OK", (": hello\n\n" + "".join(lines) + "data: [DONE]\n\n").encode())


def together(n: int) -> Deed:
    """Answers once `n` requests are in flight."""
    full = threading.Barrier(n)

    def do(line: socket.socket) -> bool:
        full.wait(60)
        return OK(line)

    return do


def completions(model: Model, n: int = 1, **settings: Any) -> list[Completion]:
    async def ask() -> list[Completion]:
        asked = Request.ask("Hi").model_copy(update=settings)
        return await asyncio.gather(*(model.complete(asked) for _ in range(n)))

    return asyncio.run(ask())


def chunks(model: Model) -> list[Chunk]:
    async def collect() -> list[Chunk]:
        return [chunk async for chunk in model.stream(Request.ask("I lost my card"))]

    return asyncio.run(collect())


# --- answers -------------------------------------------------------------------------------------


def test_extra_body_adds_and_takes_out_settings(server: Server) -> None:
    extra = {"temperature": None, "reasoning_effort": "low"}
    completions(server.model(extra_body=extra, max_tokens_key="max_completion_tokens"))
    assert server.bodies == [
        {
            "model": "big",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_completion_tokens": 256,
            "reasoning_effort": "low",
        }
    ]


def test_no_more_requests_than_allowed_are_in_flight(server: Server) -> None:
    server.deeds = [together(2)]
    completions(server.model(max_concurrency=2), 6)
    assert server.n_lines == 2


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
def test_request_is_sent_as_openai_writes_it(server: Server, wanted: dict[str, Any], sent: dict[str, Any]) -> None:
    completions(server.model(), **wanted)
    plain = {"model": "big", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 256, "temperature": 0.0}
    assert server.heads[0].startswith("POST /v1/chat/completions ")
    assert server.bodies == [plain | sent]


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


def test_stream_gives_pieces_with_their_token_probabilities_and_then_the_completion(server: Server) -> None:
    first, second = ({"content": [one]} for one in LOGPROBS["content"])
    server.deeds = [
        events(
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "ca"}, "logprobs": first}]},
            {"choices": [{"delta": {"content": "fé"}, "logprobs": second}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": USAGE},
        )
    ]
    *pieces, last = chunks(server.model())
    assert [(piece.text, piece.tokens, piece.completion) for piece in pieces] == [
        ("ca", TOKENS[:1], None),
        ("fé", TOKENS[1:], None),
    ]
    assert (last.completion.text, last.completion.tokens) == ("café", TOKENS)
    assert last.completion.cost_usd == pytest.approx(0.00205)
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


def test_error_inside_a_stream_is_raised(server: Server) -> None:
    server.deeds = [events({"error": {"message": "out of memory"}})]
    with pytest.raises(AnswerLost, match="error while answering"):
        chunks(server.model())


# --- failures ------------------------------------------------------------------------------------


def test_retry_waits_as_long_as_the_endpoint_asks(server: Server) -> None:
    server.deeds = [reply("429 Slow", b"", "Retry-After: 7"), reply("429 Slow"), OK]
    completions(server.model())
    asked, own = server.waits_s
    assert asked == 7
    assert 0.5 <= own <= 1.0  # second wait: 0.5 s doubled, times a random 0.5 to 1


def test_retry_after_beyond_the_timeout_ends_the_attempts(server: Server) -> None:
    server.deeds = [reply("429 Slow", b"", "Retry-After: 61")]
    with pytest.raises(RateLimited):
        completions(server.model())
    assert (len(server.heads), server.waits_s) == (1, [])


NO_COMPLETION = {
    "<html>hello</html>": "body: Invalid JSON: expected value at line 1 column 1",
    "{}": "no message",
    '{"choices": []}': "no message",
    '{"choices": [{"message": 3}]}': "choices.0.message: Input should be an object",
}


@pytest.mark.parametrize(
    ("deed", "kind", "n_requests", "message"),
    [
        (
            reply("401 No", b'{"error": "bad key sk-secret"}'),
            Unauthorised,
            1,
            ' refused the key (HTTP 401): {"error": "bad key •••"}\n'
            "  next: put a key that may use big into the variable OPENAI_API_KEY",
        ),
        (
            reply("429 Slow", b"slow down"),
            RateLimited,
            4,
            " asks to slow down (HTTP 429) after 4 tries: slow down\n  next: wait a while, or lower max_concurrency",
        ),
        (BUSY, Unavailable, 4, " is unavailable: HTTP 503 after 4 tries: busy\n  next: see if it is up: "),
        (reply("425 Early"), Unavailable, 4, " is unavailable: HTTP 425 after 4 tries: (nothing)"),
        (reply("302 Found", b"", "Location: URL/x"), BadAnswer, 1, "a redirect, which is not followed"),
        (
            reply("404 Not Found", b"none for ann@example.com"),
            BadAnswer,
            1,
            " refused the request (HTTP 404): none for [EMAIL]",
        ),
        *(
            (
                reply("200 OK", content.encode()),
                BadAnswer,
                1,
                f" answered with something that is not a chat completion ({reason}): {content}\n"
                "  next: check that base_url ends where the API begins, usually /v1",
            )
            for content, reason in NO_COMPLETION.items()
        ),
    ],
)
def test_failure_says_what_happened_and_is_retried_only_where_that_is_safe(
    server: Server, deed: Deed, kind: type[ModelError], n_requests: int, message: str
) -> None:
    server.deeds = [deed]
    with pytest.raises(kind) as caught:
        completions(server.model())
    assert message in str(caught.value).replace(server.url, "URL")
    assert len(server.heads) == n_requests


# --- money and settings --------------------------------------------------------------------------


def test_unknown_price_fails_before_the_first_call(server: Server) -> None:
    with pytest.raises(PriceUnknown, match='no price for "our-70b"'):
        server.model(base_url="https://api.example.com/v1", model="our-70b")


def test_machine_time_is_shared_by_requests_side_by_side(server: Server) -> None:
    """It is what an answer from loopback costs where no token price is known."""
    book = PriceBook(machine=MachinePrice(usd_per_hour=3.6, utilisation=1))  # $0.001 per second
    server.deeds = [together(2)]
    first, second = completions(server.model(book, model="our-70b"), 2)
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


def test_missing_key_is_named(server: Server) -> None:
    with pytest.raises(ConfigError, match="needs a key, and the variable BIG_KEY is not set"):
        server.model(base_url="https://api.example.com/v1", api_key_env="BIG_KEY")
