"""A scripted upstream on raw sockets with the proxy in front of it."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import pytest
from fixtures.gateway import raw_upstream, read_message, run_gateway

from smallfirst.traffic.gateway.app import Gateway
from smallfirst.traffic.settings import GatewaySettings

Script = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


class Asked(NamedTuple):
    """A request as the upstream got it."""

    line: str
    headers: dict[str, str]
    body: bytes


class Upstream:
    """Answers every request with `script` and keeps what it was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[Asked] = []
        self.script: Script = answer(b"{}")
        self.closed = threading.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                line, headers, body = await read_message(reader)
                self.asked.append(Asked(line, dict(headers), body))
                await self.script(self.asked[-1], writer)
        self.closed.set()
        writer.close()


def answer(body: bytes, status: str = "200 OK", *headers: str) -> Script:
    async def script(_: Asked, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    return script


class Proxied(NamedTuple):
    gateway: Gateway
    port: int
    upstream: Upstream
    other: Upstream

    def send(self, head: str, body: bytes = b"", *, read: bool = True) -> Any:
        """Send a request as raw bytes; return status line, headers and body as they came, or the open socket."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        line.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        if not read:
            return line
        with line:
            data = b""
            while piece := line.recv(65536):
                data += piece
        top, _, rest = data.partition(b"\r\n\r\n")
        status, *lines = top.decode("latin-1").split("\r\n")
        return status, dict(header.split(": ", 1) for header in lines), rest


def settings(first: int, second: int, **more: Any) -> GatewaySettings:
    """Settings with two upstreams on loopback, and one that nobody serves."""
    upstreams = {"first": {"base_url": f"http://127.0.0.1:{first}/v1"}, "second": _second(second)}
    upstreams["gone"] = {"base_url": "http://127.0.0.1:1/v1"}
    return GatewaySettings.model_validate({"upstreams": upstreams, **more})


def _second(port: int) -> dict[str, Any]:
    return {"base_url": f"http://127.0.0.1:{port}/other/v1", "api_key_env": "SECOND_KEY", "timeout_s": 0.3}


@pytest.fixture(scope="module")
def proxied_once() -> Iterator[Proxied]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("SECOND_KEY", "sk-second")
        upstreams = [Upstream(), Upstream()]
        for upstream in upstreams:
            upstream.port = stack.enter_context(raw_upstream(upstream.serve))
        gateway = Gateway(settings(*(upstream.port for upstream in upstreams)))
        port = stack.enter_context(run_gateway(gateway))
        yield Proxied(gateway, port, *upstreams)


@pytest.fixture
def proxied(proxied_once: Proxied) -> Proxied:
    gateway = proxied_once.gateway
    gateway.local, gateway.settings = None, settings(proxied_once.upstream.port, proxied_once.other.port)
    gateway.upstreams.settings = gateway.settings
    for upstream in (proxied_once.upstream, proxied_once.other):
        upstream.asked.clear()
        upstream.closed.clear()
        upstream.script = answer(b"{}")
    return proxied_once
