"""The proxy changes no byte of any request or answer, and OpenAI's SDK does not notice it."""

import asyncio
import gzip
import itertools
import json
import random
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Any, NamedTuple

import openai
import pytest
from fixtures.gateway import raw_upstream, read_message, run_gateway

from smallfirst.traffic.gateway.app import Gateway
from smallfirst.traffic.settings import GatewaySettings

Headers = list[tuple[str, str]]
OF_CONNECTION = {"host", "connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding"}
"""Headers that each side of a proxy has of its own."""
AGENT = "Zoë".encode().decode("latin-1")
KEYS = [("authorization", "Bearer sk-own"), ("user-agent", AGENT), ("accept-encoding", "gzip, deflate")]
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Grüße " * 300}]}).encode()
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\xff\r\n--x--\r\n'
ASKED = {
    "POST /v1/chat/completions?api-version=2%2F1": ("application/json", CHAT),
    "POST /v1/responses": ("application/json", b'{"stream": true}'),
    "POST /v1/audio/transcriptions": ('multipart/form-data; boundary="x"', FORM),
    "POST /v1/some/unknown%20route": ("application/x-ours", b"\x00\xfe"),
    "POST /v1/fine_tuning/jobs": ("application/json", b"not json"),
    "GET /v1/models?after=a&limit=2": ("", b""),
    "DELETE /v1/files/f": ("", b""),
}
MORE = [("x-request-id", "req_1"), ("x-ratelimit-reset-tokens", "6m0s"), ("set-cookie", "a=1; path=/; HttpOnly")]
MORE += [("set-cookie", "b=2; path=/"), ("retry-after", "3")]
JSON, BYTES = ("content-type", "application/json"), ("content-type", "application/octet-stream")


class Told(NamedTuple):
    """A request or an answer as it went over the wire, without what is the connection's own."""

    line: str
    headers: Headers
    body: bytes


ANSWERS = {
    "plain": Told("200 OK", [JSON, *MORE], b'{ "a" : 1.0,\n"b": "\\u00fc"}'),
    "gzip": Told("200 OK", [JSON, ("content-encoding", "gzip"), *MORE], gzip.compress(b'{"a": 1}', mtime=0)),
    "events": Told(
        "200 OK", [("content-type", "text/event-stream"), *MORE], b"event: a\ndata: {}\n\n: ping\n\ndata: [DONE]\n\n"
    ),
    "large": Told("200 OK", [BYTES, *MORE], random.Random(0).randbytes(1_000_000)),
    "nothing": Told("204 No Content", MORE, b""),
    **{
        f"{one.value}": Told(f"{one.value} {one.phrase}", [JSON, *MORE], b'{"error": {}}')
        for one in map(HTTPStatus, (400, 401, 429, 500, 503))
    },
}


async def read(reader: asyncio.StreamReader) -> Told:
    line, headers, body = await read_message(reader)
    return Told(line, [one for one in headers if one[0] not in OF_CONNECTION], body)


def wire(told: Told, pieces: int = 0) -> bytes:
    """Return the bytes of a request or an answer, chunked in pieces of this many bytes unless it is 0."""
    framing = ("transfer-encoding", "chunked") if pieces else ("content-length", str(len(told.body)))
    head = "\r\n".join([told.line, *(f"{name}: {value}" for name, value in [*told.headers, framing]), "", ""])
    if not pieces:
        return head.encode("latin-1") + told.body
    cuts = (told.body[at : at + pieces] for at in range(0, len(told.body), pieces))
    return head.encode("latin-1") + b"".join(b"%x\r\n%b\r\n" % (len(cut), cut) for cut in cuts) + b"0\r\n\r\n"


def upstream(answers: dict[str, Told], seen: list[Told]) -> AbstractContextManager[int]:
    """An upstream in a thread: it gives the answer that `x-answer` or the path names, and keeps what it saw."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                seen.append(asked := await read(reader))
                wanted = dict(asked.headers).get("x-answer") or asked.line.split(" ")[1]
                answer = answers[wanted + " stream" * (b'"stream":true' in asked.body)]
                in_pieces = ("content-type", "text/event-stream") in answer.headers
                writer.write(wire(answer._replace(line=f"HTTP/1.1 {answer.line}"), 20 * in_pieces))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return raw_upstream(serve)


def proxy(port: int) -> AbstractContextManager[int]:
    values = {"upstreams": {"default": {"base_url": f"http://127.0.0.1:{port}/v1"}}, "max_buffered_bytes": 4096}
    return run_gateway(Gateway(GatewaySettings.model_validate(values)))


def test_requests_and_answers_of_every_kind_are_the_same_bytes() -> None:
    seen: list[Told] = []

    async def send(port: int, asked: Told, pieces: int) -> Told:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        writer.write(wire(asked._replace(headers=[("host", "h"), *asked.headers]), pieces))
        answer = await read(reader)
        writer.close()
        return answer

    async def compare(port: int) -> None:
        for (line, (kind, body)), wanted, pieces in itertools.product(ASKED.items(), ANSWERS, (0, 700)):
            headers = [*KEYS, *[("content-type", kind)] * bool(kind), ("x-answer", wanted)]
            asked, given = Told(f"{line} HTTP/1.1", headers, body), ANSWERS[wanted]
            answer = await send(port, asked, pieces * bool(body))
            assert answer == given._replace(line=f"HTTP/1.1 {given.line}"), asked
            assert seen[-1] == asked._replace(headers=[one for one in headers if one[0] not in OF_CONNECTION])

    with upstream(ANSWERS, seen) as direct, proxy(direct) as proxied:
        asyncio.run(compare(proxied))


def outcomes(port: int) -> list[Any]:
    """What OpenAI's SDK makes of the answers at a port."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-own", max_retries=0)
    asked: Any = [{"role": "user", "content": "Where is my card?"}]
    chat = client.chat.completions
    with pytest.raises(openai.RateLimitError) as refused:
        chat.create(model="m", messages=asked, extra_headers={"x-answer": "429"})
    with chat.stream(model="m", messages=asked) as stream:
        streamed = [event.type for event in stream], stream.get_final_completion().to_dict()
    made = chat.create(model="m", messages=asked).to_dict()
    return [
        made,
        streamed,
        refused.value.response.headers["retry-after"],
        client.embeddings.create(model="e", input="a"),
    ]


def test_the_sdk_gives_the_same_through_the_proxy() -> None:
    head = {"id": "c", "created": 1, "model": "m", "object": "chat.completion"}
    whole = {"index": 0, "message": {"role": "assistant", "content": "On its way."}, "finish_reason": "stop"}
    deltas = [{"role": "assistant", "content": ""}, {"content": "On its "}, {"content": "way."}]
    chunks = [
        {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]} for delta in deltas
    ]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"  # type: ignore[index]
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
    answers = ANSWERS | {
        "/v1/chat/completions": Told("200 OK", [JSON], json.dumps({**head, "choices": [whole]}).encode()),
        "/v1/chat/completions stream": Told("200 OK", [("content-type", "text/event-stream")], events.encode()),
        "/v1/embeddings": Told(
            "200 OK", [JSON], json.dumps({"object": "list", "model": "e", "data": [vector]}).encode()
        ),
    }
    with upstream(answers, []) as direct, proxy(direct) as proxied:
        expected, found = outcomes(direct), outcomes(proxied)
    assert found == expected
    assert found[1][1]["choices"][0]["message"]["content"] == "On its way."
    assert found[3].data[0].embedding == [0.25, -0.5]
