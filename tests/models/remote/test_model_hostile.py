"""A hostile or broken endpoint: whatever it sends, the answer is valid and priced, or refused with a reason."""

import asyncio
import gzip
import json
import socket
import tracemalloc
from typing import Any

import pytest

from smallfirst.base.errors import BadAnswer, ModelError
from smallfirst.models.protocol import Request
from tests.models.remote.test_client import CHUNKED, Deed, Server, chunk, reply, say_and_hang_up, server

__all__ = ["server"]

USAGE = {"prompt_tokens": 3, "completion_tokens": 1}
LOGPROB = {"token": "yes", "logprob": -0.5, "bytes": [121, 101, 115], "top_logprobs": []}
ASKED = Request.ask("Is it?").model_copy(update={"logprobs": 2})


def message(usage: Any = USAGE, content: Any = "yes", **token: Any) -> dict[str, Any]:
    """A chunk of a stream and a whole completion in one, with one token's log-probability."""
    said = {"content": content}
    logprobs = {"content": [LOGPROB | token]}
    choice = {"message": said, "delta": said, "finish_reason": "stop", "logprobs": logprobs}
    return {"choices": [choice], "usage": usage}


GOOD = json.dumps(message())
INVALID = {
    "negative usage": json.dumps(message({"prompt_tokens": -150_000, "completion_tokens": 1})),
    "usage beyond any request": json.dumps(message({"prompt_tokens": 3, "completion_tokens": 10**12})),
    "a prompt longer than the one sent": json.dumps(message({"prompt_tokens": 10**7, "completion_tokens": 1})),
    "cost beyond any request": json.dumps(message(USAGE | {"cost": 1e300})),
    "usage as text": json.dumps(message({"prompt_tokens": "3", "completion_tokens": 1})),
    "usage in fractions": json.dumps(message({"prompt_tokens": 3.5, "completion_tokens": 1})),
    "log-probability NaN": json.dumps(message(logprob=float("nan"))),
    "log-probability -Infinity": json.dumps(message(logprob=float("-inf"))),
    "log-probability 1e999": GOOD.replace("-0.5", "-1e999"),
    "log-probability above 0": json.dumps(message(logprob=3.0)),
    "alternative NaN": json.dumps(message(top_logprobs=[{"token": "a", "logprob": float("nan")}])),
    "bytes beyond 255": json.dumps(message(bytes=[300])),
    "lone surrogate": json.dumps(message(content="\ud800")),
    "lone surrogate in a token": json.dumps(message(token="\udfff")),
    "integer of a million digits": GOOD[:-1] + ', "created": ' + "9" * 1_000_000 + "}",
    "nested 100,000 deep": GOOD[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "content as a number": json.dumps(message(content=7)),
    "no object": "[1]",
    "no JSON": GOOD[:-1],
}


def whole(content: bytes, *headers: str) -> Deed:
    return reply("200 OK", content, *headers)


def stream(*events: bytes) -> Deed:
    return say_and_hang_up(CHUNKED + b"".join(events) + chunk("[DONE]") + b"0\r\n\r\n")


def answers(server: Server, *, streamed: bool, **settings: Any) -> list[str]:
    async def collect() -> list[str]:
        model = server.model(**settings)
        if not streamed:
            return [(await model.complete(ASKED)).text]
        return [chunk.text async for chunk in model.stream(ASKED)]

    return asyncio.run(collect())


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("content", INVALID.values(), ids=INVALID.keys())
def test_invalid_answer_is_refused_with_a_reason(server: Server, content: str, streamed: bool) -> None:
    server.deeds = [stream(chunk(content)) if streamed else whole(content.encode())]
    with pytest.raises(BadAnswer) as caught:
        answers(server, streamed=streamed)
    assert caught.value.reason
    assert len(server.heads) == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_invalid_text_encoding_is_refused(server: Server, streamed: bool) -> None:
    content = GOOD.replace('"content": "yes"', '"content": "y\xff"').encode("latin-1")
    line = b"data: " + content + b"\n\n"
    server.deeds = [stream(b"%x\r\n%s\r\n" % (len(line), line)) if streamed else whole(content)]
    with pytest.raises(BadAnswer):
        answers(server, streamed=streamed)


def test_valid_answer_of_the_same_kind_is_taken(server: Server) -> None:
    server.deeds = [whole(GOOD.encode()), stream(chunk(message()))]
    assert answers(server, streamed=False) + answers(server, streamed=True) == ["yes", "yes", ""]


def endless(head: bytes, content: bytes) -> Deed:
    """Sends `content` again and again until the client hangs up."""

    def do(line: socket.socket) -> bool:
        try:
            line.sendall(head)
            for _ in range(300 * 1024 * 1024 // len(content)):
                line.sendall(content)
        except OSError:
            pass
        return False

    return do


OPEN_BODY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
OPEN_EVENTS = OPEN_BODY.replace(b"application/json", b"text/event-stream")
EVENT = f"data: {json.dumps({'choices': [{'delta': {'content': 'yes ' * 50}}]})}\n\n".encode()
BLOCK = 65536
FLOODS = {
    "body": (False, OPEN_BODY + b'{"x": "', b"x" * BLOCK),
    "body of empty lists": (False, OPEN_BODY + b'{"x": [', b"[]," * BLOCK),
    "one line": (True, OPEN_EVENTS, b"x" * BLOCK),
    "empty lines": (True, OPEN_EVENTS, b"\n" * BLOCK),
    "comments": (True, OPEN_EVENTS, b":\n" * BLOCK),
    "pieces of an answer": (True, OPEN_EVENTS, EVENT * (BLOCK // len(EVENT))),
    "error body": (False, b"HTTP/1.1 500 Oops\r\n\r\n", b"x" * BLOCK),
    "compressed": (
        False,
        OPEN_BODY.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
        gzip.compress(b"0" * 2**27),
    ),
}


@pytest.mark.parametrize("case", FLOODS)
def test_flood_is_cut_off_within_bounded_memory(server: Server, case: str) -> None:
    streamed, head, content = FLOODS[case]
    server.deeds = [endless(head, content)]
    tracemalloc.start()  # which counts the bytes of Python's objects
    try:
        with pytest.raises(ModelError) as caught:
            answers(server, streamed=streamed, max_retries=0)
        assert caught.value.reason
        assert tracemalloc.get_traced_memory()[1] < 40 * 1024 * 1024
    finally:
        tracemalloc.stop()
