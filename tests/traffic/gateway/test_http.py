"""Bodies, headers and streams pass in both directions as they come."""

import asyncio
import json
import threading

import pytest

from tests.traffic.gateway.conftest import Asked, Proxied, answer, settings
from tests.traffic.gateway.test_app import CHAT, post

EVENTS = [f'data: {{"n": {n}}}\n\n'.encode() for n in range(3)]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def test_events_come_in_their_rhythm(proxied: Proxied) -> None:
    seen = threading.Event()

    async def one_by_one(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENTS[0]))
        await asyncio.to_thread(seen.wait, 10)  # the client has the first event before the second is sent
        writer.write(chunk(EVENTS[1]) + chunk(EVENTS[2]) + b"0\r\n\r\n")

    proxied.upstream.script = one_by_one
    with proxied.send(post("/v1/chat/completions"), CHAT, read=False) as line:
        data = b""
        while EVENTS[0] not in data:
            data += line.recv(65536)
        assert EVENTS[1] not in data
        seen.set()
        while piece := line.recv(65536):
            data += piece
    assert all(event in data for event in EVENTS)
    assert data.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_goes_ends_the_upstreams_work(proxied: Proxied, begun: bool) -> None:
    async def for_ever(_: Asked, writer: asyncio.StreamWriter) -> None:
        if begun:
            writer.write(STREAM_HEAD + chunk(EVENTS[0]))

    proxied.upstream.script = for_ever
    with proxied.send(post("/v1/chat/completions"), CHAT, read=False) as line:
        while not proxied.upstream.asked or (begun and not line.recv(65536)):
            pass
    assert proxied.upstream.closed.wait(60)


def test_an_answer_that_breaks_off_breaks_off_for_the_client(proxied: Proxied) -> None:
    async def half(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(EVENTS[0]))
        await writer.drain()
        writer.close()

    proxied.upstream.script = half
    _, _, body = proxied.send(post("/v1/chat/completions"), CHAT)
    assert body == chunk(EVENTS[0])  # and no chunk of length zero, which would say that this was all


@pytest.mark.parametrize(("line", "odd"), [("200 OK", "X-Odd: a\x0bb"), ("999 Odd", "X-Odd: a")])
def test_a_head_that_no_server_can_write_is_a_bad_gateway(proxied: Proxied, line: str, odd: str) -> None:
    proxied.upstream.script = answer(b"{}", line, odd)  # aiohttp reads both
    status, headers, body = proxied.send(post("/v1/chat/completions"), CHAT)
    assert (status.split()[1], headers["x-smallfirst-error"]) == ("502", "upstream_invalid")
    assert json.loads(body)["error"]["type"] == "upstream_error"


def test_a_large_body_is_passed_on_while_it_arrives(proxied: Proxied) -> None:
    body = b"x" * 3_000_000
    head = post("/v1/files", body, "Content-Type: multipart/form-data; boundary=b", "Expect: 100-continue")
    line = proxied.send(head, b"", read=False)
    with line:
        assert line.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(body[:2_000_000])
        line.sendall(body[2_000_000:])
        assert b" 200 OK" in line.recv(65536)
    (asked,) = proxied.upstream.asked
    assert asked.body == body
    assert asked.headers["content-length"] == "3000000"
    assert "expect" not in asked.headers


def test_chunks_of_unknown_number_stay_chunks(proxied: Proxied) -> None:
    head = "POST /v1/files HTTP/1.1\nHost: localhost\nConnection: close\nTransfer-Encoding: chunked"
    body = b"".join(chunk(b"y" * 600_000) for _ in range(3)) + b"0\r\n\r\n"
    assert proxied.send(head, body)[0].split()[1] == "200"
    (asked,) = proxied.upstream.asked
    assert asked.body == b"y" * 1_800_000
    assert "content-length" not in asked.headers


def test_with_models_a_body_that_is_too_large_to_route_is_refused(
    proxied: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallfirst.traffic.gateway.app.MAX_ROUTED_BYTES", 500_000)
    route = {"models": {"gpt-4o": {"upstream": "second"}}, "max_buffered_bytes": 1000}
    proxied.gateway.settings = settings(proxied.upstream.port, proxied.other.port, **route)
    body = b"x" * 900_000
    status, headers, _ = proxied.send(post("/v1/files", body), body)
    assert (status.split()[1], headers["x-smallfirst-error"]) == ("413", "body_too_large")
    assert proxied.upstream.asked == proxied.other.asked == []
