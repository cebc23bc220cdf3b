"""Connections to one endpoint, kept open between requests: one POST, one reply, read whole or line by line.

Through aiohttp, whose parser is native: a request costs about a tenth of a millisecond, a sixth of what it costs
through httpx. A given httpx transport (a Unix socket, a scripted reply) is used instead where there is one. Callers
distinguish two failures: `ConnectionBroken` (no response, or only a part of it) and `ResponseTimeout` (the server may
still be working). Only what is given here is sent; redirects are not followed, cookies are not kept, `.netrc` is not
read, and loopback addresses never go through a proxy of the environment.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import yarl

from smallfirst.models.remote.config import EndpointConfig

if TYPE_CHECKING:
    import httpx

IDLE_S = 4.0
"""Connections idle for longer are not used again; servers such as uvicorn and Node close them after 5 s."""
MAX_LINE_BYTES = 4 * 1024 * 1024
"""Longest line of a stream."""


class ConnectionBroken(Exception):
    """No reply, or not all of it: the connection could not be made, or ended."""


class ResponseTimeout(Exception):
    """Nothing came for as long as one waits; the server may still be at work."""


class Reply(Protocol):
    """What came back, its body unread."""

    @property
    def status(self) -> int:
        """HTTP status."""

    def header(self, name: str) -> str:
        """A header's value; empty if it is not there."""

    async def read(self) -> str:
        """The whole body. Raises Broken and TooSlow."""

    def lines(self) -> AsyncIterator[str]:
        """The body line by line as it comes. Raises Broken and TooSlow."""

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""


class Connections(Protocol):
    """Connections of one event loop."""

    async def post(self, path: str, body: bytes) -> Reply:
        """The reply to a JSON body. Raises Broken and TooSlow."""

    async def aclose(self) -> None:
        """Close them all."""


def connect(config: EndpointConfig, key: str, transport: httpx.AsyncBaseTransport | None) -> Connections:
    """Connections of the running event loop; nothing is opened yet."""
    headers = {"Content-Type": "application/json", "User-Agent": "smallfirst"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return _OverTransport(config, headers, transport) if transport else _Sockets(config, headers)


class _Sockets:
    """Real connections."""

    def __init__(self, config: EndpointConfig, headers: dict[str, str]) -> None:
        self._url, self._config = config.base_url, config
        self._proxy = None if config.is_loopback else _proxy_for(config.base_url)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=config.max_concurrency, keepalive_timeout=IDLE_S, ssl=_trust(config.base_url)
            ),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=config.connect_timeout_s, sock_read=config.timeout_s
            ),
        )

    async def post(self, path: str, body: bytes) -> Reply:
        try:
            url = yarl.URL(f"{self._url}{path}", encoded=True)
            return _Received(await self._session.post(url, data=body, proxy=self._proxy, allow_redirects=False))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failure(error) from None

    async def aclose(self) -> None:
        await self._session.close()


class _Received:
    """A reply of aiohttp."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    async def read(self) -> str:
        try:
            return (await self._response.read()).decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failure(error) from None

    async def lines(self) -> AsyncIterator[str]:
        rest = b""
        try:
            async for piece in self._response.content.iter_any():
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace").rstrip("\r")
                if len(rest) > MAX_LINE_BYTES:
                    raise ConnectionBroken(f"a line of more than {MAX_LINE_BYTES} bytes")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failure(error) from None
        if rest:
            yield rest.decode(errors="replace")

    async def aclose(self) -> None:
        self._response.close()


class _OverTransport:
    """Requests through an httpx transport that somebody else owns."""

    def __init__(self, config: EndpointConfig, headers: dict[str, str], transport: httpx.AsyncBaseTransport) -> None:
        import httpx

        self._httpx, self._url = httpx, config.base_url
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(config.timeout_s, connect=config.connect_timeout_s),
            follow_redirects=False,
            trust_env=False,
            transport=transport,
        )

    async def post(self, path: str, body: bytes) -> Reply:
        request = self._client.build_request("POST", f"{self._url}{path}", content=body)
        try:
            return _FromTransport(self._httpx, await self._client.send(request, stream=True))
        except (self._httpx.ReadTimeout, self._httpx.WriteTimeout) as error:
            raise ResponseTimeout(error_text(error)) from None
        except self._httpx.TransportError as error:
            raise ConnectionBroken(error_text(error)) from None

    async def aclose(self) -> None:
        await self._client.aclose()


class _FromTransport:
    """A reply of httpx."""

    def __init__(self, httpx: Any, response: httpx.Response) -> None:
        self._httpx, self._response = httpx, response

    @property
    def status(self) -> int:
        return self._response.status_code

    def header(self, name: str) -> str:
        return str(self._response.headers.get(name, ""))

    async def read(self) -> str:
        try:
            return (await self._response.aread()).decode(errors="replace")
        except self._httpx.RequestError as error:
            raise ConnectionBroken(error_text(error)) from None

    async def lines(self) -> AsyncIterator[str]:
        try:
            async for line in self._response.aiter_lines():
                yield line
        except self._httpx.RequestError as error:
            raise ConnectionBroken(error_text(error)) from None

    async def aclose(self) -> None:
        await self._response.aclose()


def _failure(error: Exception) -> ConnectionBroken | ResponseTimeout:
    """Which of the two it is. Who did not even get a connection has given the server nothing to do."""
    slow = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
    return ResponseTimeout(error_text(error)) if slow else ConnectionBroken(error_text(error))


def error_text(error: Exception) -> str:
    """What an error says of itself, at least its kind."""
    return str(error) or type(error).__name__


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address (`HTTPS_PROXY`, `NO_PROXY`, …)."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _trust(url: str) -> ssl.SSLContext | bool:
    """Whose certificates are believed: the system's (or those of SSL_CERT_FILE), else those of certifi."""
    if not url.startswith("https:"):
        return True
    context = ssl.create_default_context()
    if not context.get_ca_certs():
        import certifi

        context.load_verify_locations(certifi.where())
    return context
