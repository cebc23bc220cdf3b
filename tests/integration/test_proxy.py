"""The proxy changes no byte of any request or answer, and OpenAI's SDK does not notice it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pydantic
import pytest
from fixtures.gateway import run_gateway

from benchmarks.compatibility import clients_upstream, replay, sdk_upstream
from smallfirst.gateway.app import Gateway
from smallfirst.gateway.settings import GatewaySettings

AGENT = "Zoë".encode().decode("latin-1")
KEYS = [("authorization", "Bearer sk-own"), ("accept-encoding", "gzip, deflate"), ("user-agent", AGENT)]
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Grüße " * 300}]}).encode()
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\xff\r\n--x--\r\n'
SAMPLES = {
    "POST /v1/chat/completions": ("application/json", '{ "a" : 1.0,\n"b": "\\u00fc"}'),
    "POST /v1/responses stream": ("text/event-stream", "event: a\ndata: {}\n\n: ping\n\ndata: [DONE]\n\n"),
    "DELETE /v1/files/f": ("", ""),
    "GET /v1/files/f/content": ("application/octet-stream", "\x00\x01"),
}
ASKED = [
    ("POST /v1/chat/completions?api-version=2%2F1 HTTP/1.1", "application/json", CHAT),
    ("POST /v1/responses HTTP/1.1", "application/json", b'{"stream": true}'),
    ("POST /v1/audio/transcriptions HTTP/1.1", 'multipart/form-data; boundary="x"', FORM),
    ("POST /v1/some/unknown%20route HTTP/1.1", "application/x-ours", b"\x00\xfe"),
    ("POST /v1/fine_tuning/jobs HTTP/1.1", "application/json", b"not json"),
    ("GET /v1/files/f/content HTTP/1.1", "", b""),
    ("GET /v1/models?after=a&limit=2 HTTP/1.1", "", b""),
    ("DELETE /v1/files/f HTTP/1.1", "", b""),
]


@contextmanager
def upstream(serve: Callable[..., Any]) -> Iterator[int]:
    """An upstream in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.start_server(serve, sock=listener, limit=2**22))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def proxy(port: int) -> Iterator[int]:
    """The proxy in front of a port."""
    values = {"upstreams": {"default": {"base_url": f"http://127.0.0.1:{port}/v1"}}, "max_buffered_bytes": 4096}
    with run_gateway(Gateway(GatewaySettings.model_validate(values)), socket.create_server(("127.0.0.1", 0))) as found:
        yield found


def test_requests_and_answers_of_every_kind_are_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk_upstream, "PAUSE_S", 0.0)
    kinds = dict.fromkeys(replay.KINDS)
    requests = [
        replay.Request(
            line, [*KEYS, *[("content-type", kind)] * bool(kind), *[("x-answer", wanted)] * bool(wanted)], body, pieces
        )
        for line, kind, body in ASKED
        for wanted in kinds
        for pieces in ((False, True) if body else (False,))
    ]
    with upstream(sdk_upstream.Upstream(SAMPLES, None).serve) as direct, proxy(direct) as proxied:
        found = asyncio.run(replay.compare(requests, direct, proxied))
    differences = {what: n for what, n in found.differences.items() if what != "pieces of a stream"}
    assert differences == {}, found.examples
    assert found.n == 13 * len(kinds)
    assert set(found.kinds) == {*kinds, "plain", "stream"} - {""}


class Person(pydantic.BaseModel):
    name: str
    age: int


def outcomes(port: int) -> list[Any]:
    """What OpenAI's SDK makes of the answers at a port."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-own", max_retries=0)
    asked: Any = [{"role": "user", "content": "Where is my card?"}]
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    chat, responses = client.chat.completions, client.responses
    with chat.stream(model="m", messages=asked, tools=[tool]) as stream:
        called = [event.type for event in stream], stream.get_final_completion().to_dict()
    events = [event.to_dict() for event in responses.create(model="m", input="Where?", stream=True)]
    parsed = responses.parse(model="m", input="Who?", text_format=Person).output_parsed
    pieces = [piece.to_dict() for piece in chat.create(model="m", messages=asked, stream=True)]
    return [called, events, parsed, pieces, client.embeddings.create(model="e", input=["a"]).data[0].embedding]


def test_the_sdk_gives_the_same_through_the_proxy() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await clients_upstream.answer(await sdk_upstream.read(reader), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    with upstream(serve) as direct, proxy(direct) as proxied:
        expected, found = outcomes(direct), outcomes(proxied)
    assert found == expected
    assert found[2] == Person(name="Ada", age=3)
    assert found[4] == [0.25, -0.5, 1.0]
