"""Connections have an end, and heads that two parsers read in two ways are refused; bytes over a real socket."""

import asyncio
import json
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
import uvloop
from fixtures.server import WholeModel
from fixtures.waiting import until
from uvicorn.server import ServerState

from smallfirst.models.protocol import Capability, Chunk, Completion, Request
from smallfirst.serving.http_limits import ConnectionLimits, limited_protocol

QUICK = ConnectionLimits(silent_s=1.5, head_s=0.4, body_s=0.4, unread_s=0.6)
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
INNER = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(*lines: bytes, body: bytes = BODY) -> bytes:
    """A chat as bytes; the lines say how long its body is."""
    head = (b"POST /v1/chat/completions HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *lines)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def length(n: int = len(BODY)) -> bytes:
    return b"Content-Length: %d" % n


CODED = b"Transfer-Encoding: chunked"
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def status(content: bytes) -> int:
    """Status of the only answer; the connection is closed after an error, whose body is in OpenAI's form."""
    assert content.count(b"HTTP/1.1 ") == 1, content
    head, _, body = content.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    return int(head.split()[1])


@pytest.mark.parametrize(
    "sent",
    [
        post(length(), b"Transfer-Encoding: chunked", body=CHUNKED + INNER),
        post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=CHUNKED + INNER),
        post(length(), length(), body=BODY + INNER),
        post(length(), length(0), body=BODY + INNER),
        post(length() + b", " + str(len(BODY)).encode(), body=BODY + INNER),
        post(b"CONTENT-LENGTH: 1", length(), body=BODY + INNER),
        post(b"Transfer-Encoding:\r\n chunked", body=CHUNKED + INNER),
        post(b"X: a\r\n\tb", length(), body=BODY + INNER),
        post(b"Transfer-Encoding: xchunked", body=CHUNKED + INNER),
        post(b"Transfer-Encoding: chunked, identity", body=CHUNKED + INNER),
        post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKED + INNER),
        post(b"Content-Length : 5", body=BODY + INNER),
        post(b"Content-Length: -1", body=BODY + INNER),
        post(b"Content-Length: +5", body=BODY + INNER),
        post(b"Host: evil.example", length(), body=BODY + INNER),
        post(b"X\x00: a", length(), body=BODY + INNER),
        post(length(), body=BODY + INNER).replace(b"\r\n", b"\n", 1),
        post(b"X: a\nTransfer-Encoding: chunked", length(), body=BODY + INNER),
        post(length()).replace(b"\r\n\r\n", b"\r\n\n"),
        post(length()).replace(b"\r\n\r\n", b"\n\r\n"),
        post(b"X: a\rContent-Length: 1", length(), body=BODY + INNER),
        post(CODED, body=CHUNKED + INNER).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
        post(CODED, body=CHUNKED.replace(b"\r\n", b" \r\n", 1) + INNER),
        post(CODED, body=CHUNKED.replace(b"\r\n", b";a\rb\r\n", 1) + INNER),
        post(CODED, body=CHUNKED.replace(b"\r\n", b";a\nb\r\n", 1) + INNER),
        post(CODED, body=CHUNKED[:-2] + b"\n" + INNER),
        post(CODED, body=CHUNKED[:-2] + b"X: a\nY: b\r\n\r\n" + INNER),
        b"GET /v1/models\r\n\r\n" + INNER,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\r\n\r\n",
    ],
)
def test_heads_that_can_be_read_in_two_ways_are_refused_whole(start, label, sent: bytes) -> None:
    assert status(start(m=label).raw(sent)) == 400


def test_a_body_that_looks_like_a_head_is_a_body(start, label) -> None:
    server = start(m=label)
    folded = b'{"model": "m",\n "messages": [{"role": "user",\n\t"content": "Content-Length: 1\\r\\n"}]}'
    answer = server.raw(post(length(len(folded)), b"Connection: close", body=folded))
    assert answer.startswith(b"HTTP/1.1 200 ")
    pieces = post(b"Transfer-Encoding: chunked", b"Connection: close", body=CHUNKED)
    assert server.raw(pieces).startswith(b"HTTP/1.1 200 ")
    told = CHUNKED.replace(b"\r\n", b";name=a b\r\n", 1)[:-2] + b"X: a\r\n\r\n"
    assert server.raw(post(CODED, b"Connection: close", body=told)).startswith(b"HTTP/1.1 200 ")
    bit_by_bit = [step for n in range(0, len(pieces), 7) for step in (pieces[n : n + 7], 0.002)]
    assert server.raw(*bit_by_bit).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    "lines",
    [[b"X: " + b"a" * 17_000], [b"X-%d: a" % n for n in range(101)], [b"Y" * 17_000 + b": a"], [b"X" * 200_000]],
)
def test_large_heads_are_refused_however_they_come(start, label, lines: list[bytes], at_once: bool) -> None:
    sent = post(*lines, length())
    steps = [sent] if at_once else [step for n in range(0, 16_000, 4_000) for step in (sent[n : n + 4_000], 0.01)]
    answer = start(m=label).raw(*steps, sent[16_000:] if not at_once else b"")
    assert status(answer) == 431


@pytest.mark.parametrize(
    "sent",
    [
        [b"P"],
        [b"POST /v1/chat"],
        [post(length())[:60], *[step for n in range(9) for step in (b"X-%d: a\r\n" % n, 0.1)]],
        [post(length(), body=b"")],
        [post(length(), body=BODY[:9]), *[step for n in range(9, 18) for step in (BODY[n : n + 1], 0.1)]],
        [post(b"Transfer-Encoding: chunked", body=b"5\r\nhel")],
    ],
    ids=["a byte", "half a line", "a header now and then", "no body", "a byte now and then", "half a chunk"],
)
def test_a_client_that_does_not_finish_is_told_so_and_cut_off(start, label, sent: list[bytes | float]) -> None:
    server = start(m=label, limits=QUICK)
    assert status(server.raw(*sent)) == 408
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_the_time_of_a_head_begins_with_its_first_byte(start, label) -> None:
    server = start(m=label, limits=QUICK)
    whole = post(length(), b"Connection: close")
    assert server.raw(0.9, whole).startswith(b"HTTP/1.1 200 ")  # who connects on a busy machine may send late
    assert status(server.raw(0.9, whole[:20])) == 408
    assert server.raw() == b""  # who never sends is let go without a word
    until(lambda: not server.n_connections)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_has_come_while_the_process_could_not_read_is_read(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """uvloop runs its timers before it reads."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> bytes:
        config = uvicorn.Config(app, http=limited_protocol(QUICK), lifespan="off", log_config=None)
        config.load()
        state = ServerState()
        running = asyncio.get_running_loop()
        server = await running.create_server(
            lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        with socket.create_connection(server.sockets[0].getsockname()[:2]) as line:
            line.sendall(b"GET / HTTP/1.1\r\n")
            await asyncio.sleep(0.1)
            line.sendall(b"Host: localhost\r\nConnection: close\r\n\r\n")
            time.sleep(1)
            return await asyncio.to_thread(line.recv, 1000)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(ask()).startswith(b"HTTP/1.1 204 ")


def test_the_second_request_of_a_connection_has_a_clock_as_well(start, label) -> None:
    server = start(m=label, limits=QUICK)
    answer = server.raw(post(length()), 0.2, b"GET /hea")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer


def test_a_connection_that_waits_for_its_next_request_is_left_alone(start, label) -> None:
    server = start(m=label, limits=QUICK)
    with httpx.Client() as client:
        for _ in range(2):
            assert client.get(f"{server.url}/health").status_code == 200
            time.sleep(0.7)  # longer than a head may take
        assert server.n_connections == 1


def test_a_model_that_takes_long_is_no_slow_client(start, echo) -> None:
    server = start(m=echo, limits=QUICK)
    echo.gate.clear()
    answer = server.raw(post(length(), b"Connection: close"), 0.9, seconds=0.1)
    assert answer == b""
    echo.gate.set()
    assert server.raw(post(length(), b"Connection: close")).startswith(b"HTTP/1.1 200 ")


def test_bytes_earn_time_for_a_body(start, label) -> None:
    slow = ConnectionLimits(body_s=0.3, body_bytes_per_s=20)
    body = BODY + b" " * 40
    steps = [step for n in range(0, len(body), 10) for step in (body[n : n + 10], 0.1)]  # 100 bytes a second
    answer = start(m=label, limits=slow).raw(post(length(len(body)), b"Connection: close", body=b""), *steps)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_the_process_may_open_two_files_a_connection() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    try:
        assert limited_protocol(ConnectionLimits(max_connections=300)).peers.capacity == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 600
        assert limited_protocol(ConnectionLimits(max_connections=hard)).peers.capacity == hard // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_address_leaves_connections_to_others(start, label) -> None:
    server = start(m=label, limits=ConnectionLimits(max_connections=8))
    each = ["127.0.0.2"] * 8 + ["127.0.0.3"] * 2
    held = [socket.create_connection(("127.0.0.1", server.port), source_address=(one, 0)) for one in each[:8]]
    try:
        until(lambda: server.n_connections == 6)
        assert held[7].recv(100).startswith(b"HTTP/1.1 503 ")
        assert httpx.get(f"{server.url}/health").status_code == 200
        held += [socket.create_connection(("127.0.0.1", server.port), source_address=(one, 0)) for one in each[8:]]
        assert status(server.raw()) == 503
    finally:
        for line in held:
            line.close()
    until(lambda: not server.n_connections)


def test_a_refused_client_that_goes_on_sending_is_cut_off(start, label) -> None:
    server = start(m=label, limits=QUICK)
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    drip = [step for _ in range(40) for step in (b"x" * 100, 0.05)]
    assert server.raw(head, *drip).startswith(b"HTTP/1.1 404 ")
    until(lambda: not server.n_connections)


class Flood(WholeModel):
    """Forty megabytes, piece by piece."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})

    name = "flood"

    async def stream(self, request: Request) -> Iterator[Chunk]:  # type: ignore[override]
        for _ in range(400):
            yield Chunk(text="x" * 100_000)
        yield Chunk(completion=Completion(text="x", answered_by=self.name, latency_ms=1, cost_usd=0))


def test_a_client_that_takes_nothing_in_is_cut_off(start) -> None:
    server = start(m=Flood(), limits=QUICK)
    body = BODY[:-1] + b', "stream": true}'
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(post(length(len(body)), body=body))
        until(lambda: server.n_connections)  # a busy server accepts late
        until(lambda: not server.n_connections)
        watch = select.poll()
        watch.register(line, 0)
        assert watch.poll(60_000)  # the kernel holds nothing for it either: the connection was reset


def test_a_client_that_takes_in_slowly_is_not_cut_off(start) -> None:
    limits = ConnectionLimits(unread_s=0.75, read_bytes_per_s=1_000)
    server = start(m=Flood(), limits=limits)
    body = BODY[:-1] + b', "stream": true}'
    n_bytes = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
        line.sendall(post(length(len(body)), body=body))
        for _ in range(30):
            time.sleep(0.05)
            n_bytes += len(line.recv(100_000))
        assert server.n_connections == 1
    assert n_bytes > 1_000_000
