"""What an HTTP session takes from the environment, and what it refuses to read."""

import asyncio
import ssl
import threading

import pytest
from fixtures.gateway import raw_upstream, read_message

from smallfirst.models.remote import http
from smallfirst.models.remote.http import HttpSession
from tests.models.remote.test_client import server

__all__ = ["server"]


def test_proxy_of_the_environment_is_used_except_where_it_says_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "internal.example.com")
    assert http.proxy_for("https://api.example.com/v1") == "http://proxy:3128"
    assert http.proxy_for("https://internal.example.com/v1") is None


def test_https_trusts_the_certificates_of_the_system_or_else_those_of_certifi(monkeypatch: pytest.MonkeyPatch) -> None:
    assert http.certificates("http://api.example.com/v1") is True
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)
    context = http.certificates("https://api.example.com/v1")
    assert isinstance(context, ssl.SSLContext)
    assert context.get_ca_certs()


@pytest.mark.parametrize(
    "then", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"], ids=["ended", "sent more"]
)
def test_a_connection_that_ended_or_spoke_unasked_while_the_loop_was_busy_carries_no_request(then: bytes) -> None:
    asked, done = [], threading.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await read_message(reader))[2])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + asked[-1])
        await writer.drain()
        await asyncio.sleep(0.05)  # an answer of its own on the line
        writer.write(then)
        await writer.drain()
        if not then:
            writer.close()
            await writer.wait_closed()
        done.set()

    async def ask(port: int) -> None:
        session = HttpSession(f"http://127.0.0.1:{port}", timeout_s=5)
        for body in (b"one", b"two"):
            assert await (await session.post("/v1/chat/completions", body)).read() == body
            assert done.wait(20)  # the loop stands still meanwhile
            done.clear()
        await session.aclose()

    with raw_upstream(once) as port:
        asyncio.run(ask(port))
    assert asked == [b"one", b"two"]
