"""HTTP to one server over pooled connections: the package's only HTTP client, on aiohttp.

The server is not trusted: bodies, events and streams are bounded, and nothing is decompressed. Redirects are not
followed, cookies and `.netrc` are ignored, and a proxy named by the environment is never used for this machine.
"""

from __future__ import annotations

import asyncio
import json
import select
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import yarl
from aiohttp.connector import Connection

from smallfirst.base.sync import run_sync
from smallfirst.models.remote.config import is_loopback

CONNECT_TIMEOUT_S = 5.0
"""Longest wait for a connection."""
IDLE_TIMEOUT_S = 4.0
"""Connections idle for longer are not used again; servers such as uvicorn and Node close them after 5 s."""
MAX_BODY_BYTES = 16 * 1024 * 1024
"""Largest body, and most bytes of a stream in all, unless the caller sets another limit."""
MAX_LINE_BYTES = 1024 * 1024
"""Longest line of a stream."""
UNIX_SOCKET_URL = "http://localhost"
"""Base URL of a server on a Unix socket, where the socket is the address."""


class ConnectionBroken(Exception):
    """No response, or not all of it: the connection ended. The server may have worked on the request."""


class NotConnected(ConnectionBroken):
    """The connection could not be made: nothing was sent."""


class InvalidResponse(ConnectionBroken):
    """The response is larger than its limit, compressed, or no text."""


class ResponseTimeout(ConnectionBroken):
    """The server sent nothing within the timeout; it may still be working on the request."""


class _Stale(aiohttp.ClientConnectionError):
    """A connection of the pool has ended, or has bytes that nobody asked for: nothing was sent."""


class _LiveRequest(aiohttp.ClientRequest):
    """A request that is sent on a live connection alone.

    aiohttp sends on whatever its loop has not seen the end of yet, and takes an answer that came unasked for its own.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        transport, protocol = conn.transport, conn.protocol
        if transport is None or protocol is None or protocol.should_close or _has_ended(transport):
            raise _Stale("the connection has ended")
        return await super().send(conn)


def _has_ended(transport: asyncio.BaseTransport) -> bool:
    """Return True if the peer has closed its side, or, without TLS, has sent something before it was asked."""
    line = select.poll()
    unasked = 0 if transport.get_extra_info("sslcontext") else select.POLLIN
    line.register(transport.get_extra_info("socket").fileno(), unasked | getattr(select, "POLLRDHUP", 0))
    return bool(line.poll(0))


_MOST_STALE = 8


async def _on_a_live_connection(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    for _ in range(_MOST_STALE):
        try:
            return await send(request)
        except _Stale:
            await asyncio.sleep(0)  # in which the loop sees what else of the pool has ended
    return await send(request)


LIVE: Mapping[str, Any] = {"request_class": _LiveRequest, "middlewares": (_on_a_live_connection,)}
"""Arguments of an aiohttp session that sends each request once, and on a live connection."""


class HttpSession:
    """The connections of one event loop to one server. Create it inside a running loop and close it there."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str = "",
        timeout_s: float,
        max_connections: int = 8,
        unix_socket: Path | None = None,
    ) -> None:
        """Open nothing yet. `timeout_s` limits the wait for the first byte and between two pieces."""
        self._base_url = base_url
        self._proxy = None if unix_socket or is_loopback(urlsplit(base_url).hostname or "") else proxy_for(base_url)
        headers = {"Content-Type": "application/json", "User-Agent": "smallfirst", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connector: aiohttp.BaseConnector
        if unix_socket:
            # One connection a request: llama.cpp closes idle ones, and a request on a closing connection would be lost.
            connector = aiohttp.UnixConnector(str(unix_socket), limit=max_connections, force_close=True)
        else:
            trust = certificates(base_url)
            connector = aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=IDLE_TIMEOUT_S, ssl=trust)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            **LIVE,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s),
        )

    async def post(self, path: str, body: bytes) -> HttpResponse:
        return await self.send("POST", path, body)

    async def aclose(self) -> None:
        await self._session.close()

    async def send(self, method: str, path: str, body: bytes | None = None) -> HttpResponse:
        """Return the response, its body unread. Raise ConnectionBroken."""
        url = yarl.URL(f"{self._base_url}{path}", encoded=True)
        try:
            sent = self._session.request(method, url, data=body, proxy=self._proxy, allow_redirects=False)
            return HttpResponse(await sent)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failure(error) from None


class HttpResponse:
    """A response whose body is read on demand."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    def header(self, name: str) -> str:
        """Return a header's value, or an empty string if it is missing."""
        return self._response.headers.get(name, "")

    async def read(self, *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """Return the body. Raise ConnectionBroken, an InvalidResponse if it is too large."""
        return b"".join([piece async for piece in self._pieces(max_bytes)])

    async def read_start(self, n_bytes: int) -> bytes:
        """Return the first `n_bytes` of a body, or as many as come."""
        start = b""
        with suppress(ConnectionBroken):
            async for piece in self._pieces(MAX_BODY_BYTES):
                start += piece
                if len(start) >= n_bytes:
                    break
        return start[:n_bytes]

    async def events(self, *, max_bytes: int = MAX_BODY_BYTES) -> AsyncIterator[str]:
        """Yield the data of server-sent events as they arrive, other lines skipped. Raise as `read` does."""
        rest = bytearray()
        async for piece in self._pieces(max_bytes):
            *lines, last = piece.split(b"\n")
            if lines:
                lines[0] = bytes(rest) + lines[0]
                rest.clear()
            rest += last
            if max(map(len, (rest, *lines))) > MAX_LINE_BYTES:
                raise InvalidResponse(f"a line of more than {MAX_LINE_BYTES:,} bytes")
            for line in lines:
                if line.startswith(b"data:"):
                    yield _text(line)
        if rest.startswith(b"data:"):
            yield _text(rest)

    async def _pieces(self, max_bytes: int) -> AsyncIterator[bytes]:
        encoding, n_bytes = self.header("content-encoding") or "identity", 0
        if encoding != "identity":
            raise InvalidResponse("compressed, although it was asked not to be")
        try:
            async for piece in self._response.content.iter_any():
                n_bytes += len(piece)
                if n_bytes > max_bytes:
                    raise InvalidResponse(f"more than {max_bytes:,} bytes")
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failure(error) from None

    async def aclose(self) -> None:
        """Return the connection to the pool if the body was read to its end, else close it."""
        self._response.close()


class BlockingSession:
    """An HttpSession for code without an event loop, and for a notebook."""

    def __init__(self, open_session: Callable[[], HttpSession]) -> None:
        async def session() -> HttpSession:
            return open_session()

        self._session = run_sync(session())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        run_sync(self._session.aclose())

    def send(self, method: str, path: str, body: Any = None) -> HttpResponse:
        return run_sync(self._session.send(method, path, None if body is None else json.dumps(body).encode()))

    def read(self, response: HttpResponse, *, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        return run_sync(response.read(max_bytes=max_bytes))

    def events(self, response: HttpResponse) -> Iterator[str]:
        events = response.events()

        async def following() -> str | None:
            return await anext(events, None)

        while (event := run_sync(following())) is not None:
            yield event


def error_text(error: Exception) -> str:
    """Return an error's message, or its type where it has none."""
    return str(error) or type(error).__name__


_UNSENT = (_Stale, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
"""Errors before a connection, TLS and proxy included, is there: the server got nothing to work on."""


def _failure(error: Exception) -> ConnectionBroken:
    if isinstance(error, _UNSENT):
        return NotConnected(error_text(error))
    return (ResponseTimeout if isinstance(error, TimeoutError) else ConnectionBroken)(error_text(error))


def _text(line: bytes | bytearray) -> str:
    try:
        return line.decode().removeprefix("data:").strip()
    except UnicodeDecodeError:
        raise InvalidResponse("no UTF-8") from None


def proxy_for(url: str) -> str | None:
    """Return the address of the proxy that the environment names for `url`, or None."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def certificates(url: str) -> ssl.SSLContext | bool:
    """Trust the certificates of the system (or of SSL_CERT_FILE), or those of certifi where the system has none."""
    if not url.startswith("https:"):
        return True
    context = ssl.create_default_context()
    if not context.get_ca_certs():
        import certifi

        context.load_verify_locations(certifi.where())
    return context
