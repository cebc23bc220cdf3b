"""An OpenAI-compatible endpoint: answers, streams, prices, and every way in which it can fail."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pydantic
import pytest

from smallfirst.errors import (
    BadAnswer,
    ConfigError,
    ModelError,
    PriceUnknown,
    RateLimited,
    Unauthorised,
    Unavailable,
)
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    Embeddings,
    Model,
    Request,
    ResponseFormat,
    Token,
)
from smallfirst.models.remote.http import ConnectionBroken, ResponseTimeout
from smallfirst.models.remote.model import EndpointConfig, EndpointModel
from smallfirst.models.remote.responses import retry_after_s
from smallfirst.pricing import MachinePrice, PriceBook, TokenPrice

BASE = "https://api.example.com/v1"
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

    async def read(self) -> str:
        return self.text

    async def lines(self) -> AsyncIterator[str]:
        for line in self.text.split("\n"):
            yield line

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


# --- answers -------------------------------------------------------------------------------------


def test_answer_carries_text_tokens_and_cost() -> None:
    api = Api(ok())
    model = api.model()
    completion = ask(model)
    assert isinstance(model, Model)
    assert (completion.text, completion.answered_by) == ("card_lost", "big")
    assert (completion.prompt_tokens, completion.completion_tokens) == (1000, 5)
    assert completion.cost_usd == pytest.approx(0.00205)  # 1000 at $2 and 5 at $10 per million
    assert completion.finish_reason == "stop"
    assert completion.latency_ms > 0


def test_request_is_sent_as_openai_writes_it() -> None:
    api = Api(ok())
    request = Request.ask("Hi", max_tokens=9).model_copy(update={"stop": ("\n",), "seed": 7})
    asyncio.run(api.model().complete(request))
    assert api.requests[0][0] == "/chat/completions"
    assert api.body() == {
        "model": "big",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 9,
        "temperature": 0.0,
        "seed": 7,
        "stop": ["\n"],
    }


def test_extra_body_adds_and_takes_out_settings() -> None:
    api = Api(ok())
    extra = {"temperature": None, "reasoning_effort": "low"}
    ask(api.model(extra_body=extra, max_tokens_key="max_completion_tokens"))
    assert "temperature" not in api.body()
    assert api.body()["reasoning_effort"] == "low"
    assert api.body()["max_completion_tokens"] == 256


def test_of_content_in_parts_only_the_text_counts() -> None:
    parts = [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "card_lost"}]
    body = ANSWER | {"choices": [{"message": {"content": parts}, "finish_reason": "length"}]}
    completion = ask(Api(ok(body)).model())
    assert (completion.text, completion.finish_reason) == ("card_lost", "length")


def test_no_more_requests_than_allowed_are_in_flight() -> None:
    async def six() -> int:
        gate = Gate(2)
        model = gate.model(max_concurrency=2)
        await asyncio.gather(*(model.complete(Request.ask("Hi")) for _ in range(6)))
        return gate.most

    assert asyncio.run(six()) == 2


def test_form_and_token_probabilities_are_asked_for_as_openai_does() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    form = ResponseFormat(kind="json_schema", name="place", json_schema=schema, strict=True)
    api = Api(ok())
    model = api.model()
    request = Request.ask("Hi")
    asyncio.run(model.complete(request.model_copy(update={"response_format": form, "logprobs": 2})))
    assert api.body()["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "place", "schema": schema, "strict": True},
    }
    assert (api.body()["logprobs"], api.body()["top_logprobs"]) == (True, 2)
    asyncio.run(
        model.complete(
            request.model_copy(update={"response_format": ResponseFormat(kind="json_object"), "logprobs": 0})
        )
    )
    assert api.body()["response_format"] == {"type": "json_object"}
    assert api.body()["logprobs"] is True
    assert "top_logprobs" not in api.body()


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


def test_token_probabilities_are_read() -> None:
    choice = {"message": {"content": "café"}, "finish_reason": "stop", "logprobs": LOGPROBS}
    assert ask(Api(ok(ANSWER | {"choices": [choice]})).model()).tokens == TOKENS
    assert ask(Api(ok()).model()).tokens == ()


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


# --- vectors -------------------------------------------------------------------------------------


def embed(model: EndpointModel, *texts: str) -> Embeddings:
    return asyncio.run(model.embed(texts))


def test_vectors_come_in_the_order_of_their_texts_and_have_length_1() -> None:
    data = [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]
    api = Api(ok({"data": data, "usage": {"prompt_tokens": 1000, "total_tokens": 1000}}))
    model = api.model()
    found = embed(model, "a", "b")
    assert Capability.EMBEDDINGS in model.capabilities
    assert found.vectors == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 1.0]]
    assert (found.n_tokens, found.cost_usd) == (1000, pytest.approx(0.002))  # at $2 per million
    assert api.requests[0][0] == "/embeddings"
    assert api.body() == {"model": "big", "input": ["a", "b"], "encoding_format": "float"}


def test_vectors_of_a_machine_cost_its_time() -> None:
    book = PriceBook(machine=MachinePrice(usd_per_hour=3.6, utilisation=1))
    api = Api(ok({"data": [{"index": 0, "embedding": [1.0]}]}))
    assert 0 < embed(api.model(book, base_url="http://127.0.0.1:9/v1", model="our-70b"), "a").cost_usd < 0.001


def test_no_texts_ask_nobody() -> None:
    api = Api(ok())
    assert embed(api.model()) == Embeddings([], 0, 0.0)
    assert api.requests == []


@pytest.mark.parametrize("indexes", [[0], [0, 0], [1, 2]])
def test_vectors_that_do_not_fit_the_texts_are_a_bad_answer(indexes: list[int]) -> None:
    data = [{"index": i, "embedding": [1.0]} for i in indexes]
    with pytest.raises(BadAnswer, match="did not answer with one vector for each text"):
        embed(Api(ok({"data": data, "usage": ANSWER["usage"]})).model(), "a", "b")


def test_vectors_whose_tokens_nobody_counted_have_no_price() -> None:
    with pytest.raises(BadAnswer, match="did not say how many tokens"):
        embed(Api(ok({"data": [{"index": 0, "embedding": [1.0]}]})).model(), "a")


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


def test_stream_is_tried_again_before_the_first_piece() -> None:
    end = {"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]} | {"usage": ANSWER["usage"]}
    api = Api(Response(503), events(end))
    assert chunks(api.model())[0].text == "yes"
    assert len(api.requests) == 2


def test_stream_that_ends_early_is_an_error_and_not_tried_again() -> None:
    api = Api(events({"choices": [{"delta": {"content": "card_"}}]}, done=False))
    with pytest.raises(Unavailable, match="the stream ended early"):
        chunks(api.model())
    assert len(api.requests) == 1


def test_error_inside_a_stream_is_raised() -> None:
    api = Api(events({"error": {"message": "out of memory"}}))
    with pytest.raises(Unavailable, match="failed while answering"):
        chunks(api.model())


# --- failures ------------------------------------------------------------------------------------


def test_retry_waits_as_long_as_the_endpoint_asks() -> None:
    api = Api(Response(429, headers={"retry-after": "7"}), Response(500), ok())
    assert ask(api.model()).text == "card_lost"
    asked, own = api.waits_s
    assert asked == 7
    assert 0.5 <= own <= 1.0  # second wait: 0.5 s doubled, times a random 0.5 to 1


def test_retry_after_beyond_the_timeout_ends_the_tries() -> None:
    api = Api(Response(429, headers={"retry-after": "61"}))
    failing(api.model(), RateLimited)
    assert (len(api.requests), api.waits_s) == (1, [])


def test_retry_after_may_be_a_date() -> None:
    moment = datetime.now(UTC) + timedelta(seconds=30)
    seconds = retry_after_s(format_datetime(moment, usegmt=True))
    assert seconds is not None
    assert 28 <= seconds <= 30
    assert retry_after_s("soon") is None


def test_refused_key_names_the_variable_and_is_not_tried_again() -> None:
    api = Api(Response(401, text='{"error": "bad key sk-secret"}'))
    assert failing(api.model(), Unauthorised) == (
        f'{BASE}/chat/completions refused the key (HTTP 401): {{"error": "bad key •••"}}\n'
        "  next: put a key that may use big into the variable OPENAI_API_KEY"
    )
    assert len(api.requests) == 1


def test_exhausted_rate_limit_is_rate_limited() -> None:
    api = Api(Response(429, text="slow down"))
    assert failing(api.model(), RateLimited) == (
        f"{BASE}/chat/completions asks to slow down (HTTP 429) after 4 tries: slow down\n"
        "  next: wait a while, or lower max_concurrency"
    )
    assert len(api.requests) == 4


def test_server_error_says_that_the_large_model_is_down() -> None:
    api = Api(Response(503))
    assert failing(api.model(max_retries=1), Unavailable) == (
        f"large model down: {BASE}/chat/completions: HTTP 503 after 2 tries: (nothing)\n"
        f"  next: see if it is up: curl {BASE}/models"
    )


def test_timeout_is_not_tried_again() -> None:
    api = Api(ResponseTimeout())
    assert "gave no answer within 3 s" in failing(api.model(timeout_s=3), Unavailable)
    assert len(api.requests) == 1


def test_broken_connection_is_tried_again() -> None:
    api = Api(ConnectionBroken("refused"), ConnectionBroken("hung up"), ok())
    assert ask(api.model()).text == "card_lost"
    assert len(api.waits_s) == 2


@pytest.mark.parametrize("content", ["<html>hello</html>", "{}", '{"choices": []}', '{"choices": [{"message": 3}]}'])
def test_malformed_body_is_a_bad_answer(content: str) -> None:
    api = Api(Response(text=content))
    assert failing(api.model(), BadAnswer) == (
        f"{BASE}/chat/completions answered with something that is not a chat completion: {content}\n"
        "  next: check that base_url ends where the API begins, usually /v1"
    )
    assert len(api.requests) == 1


def test_redirect_is_not_followed() -> None:
    api = Api(Response(307, headers={"Location": "https://elsewhere.example.com"}))
    assert "a redirect, which is not followed" in failing(api.model(), BadAnswer)
    assert len(api.requests) == 1


def test_refused_request_shows_what_the_endpoint_said() -> None:
    api = Api(Response(404, text="no model big"))
    assert "refused the request (HTTP 404): no model big" in failing(api.model(), BadAnswer)


# --- money and settings --------------------------------------------------------------------------


def test_unknown_price_fails_before_the_first_call() -> None:
    api = Api(ok())
    with pytest.raises(PriceUnknown, match='no price for "our-70b"'):
        api.model(model="our-70b")
    assert api.requests == []


def test_answer_without_usage_has_no_price() -> None:
    api = Api(ok({"choices": ANSWER["choices"]}))
    assert "did not say how many tokens it used" in failing(api.model(), BadAnswer)


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


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        Api(ok()).model(api_key_env="BIG_KEY")
    assert str(caught.value) == (f"{BASE} needs a key, and the variable BIG_KEY is not set\n  next: export BIG_KEY=…")


def test_loopback_needs_no_key() -> None:
    assert ask(Api(ok()).model(base_url="http://[::1]:9/v1", api_key_env="BIG_KEY")).text == "card_lost"


@pytest.mark.parametrize("url", ["api.example.com/v1", "ftp://a/v1", "https://me:pw@a/v1", "http://a:b/v1"])
def test_unusable_address_is_refused(url: str) -> None:
    with pytest.raises(pydantic.ValidationError):
        EndpointConfig(base_url=url, model="big")


# --- a real server on loopback -------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers "Hi" at once; promises an answer to anything else and never sends it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        content = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if b'"Hi"' in asked:
            self.wfile.write(content)
        else:
            self.server.released.wait(5)
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_one_model_serves_several_event_loops(address: str) -> None:
    model = EndpointModel(EndpointConfig(base_url=address, model="big"), BOOK)
    assert [ask(model, "Hi").text for _ in range(3)] == ["card_lost"] * 3


def test_closing_twice_is_safe_and_a_closed_model_can_be_used_again(address: str) -> None:
    model = EndpointModel(EndpointConfig(base_url=address, model="big"), BOOK)

    async def use() -> str:
        await model.complete(Request.ask("Hi"))
        await model.aclose()
        await model.aclose()
        return (await model.complete(Request.ask("Hi"))).text

    assert asyncio.run(use()) == "card_lost"


def test_answer_that_stalls_halfway_is_a_timeout(address: str) -> None:
    config = EndpointConfig(base_url=address, model="big", timeout_s=0.1)
    message = failing(EndpointModel(config, BOOK), Unavailable)
    assert "broke off its answer" in message
    assert "Timeout" in message


def test_nobody_at_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    config = EndpointConfig(base_url=url, model="big", max_retries=0)
    message = failing(EndpointModel(config, BOOK), Unavailable)
    assert message.startswith(f"large model down: {url}/chat/completions: ")
