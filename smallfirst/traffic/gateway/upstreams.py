"""Connections to the upstreams, and which of them a request goes to."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import yarl

from smallfirst.models.remote.config import is_loopback
from smallfirst.models.remote.http import IDLE_TIMEOUT_S, LIVE, MAX_BODY_BYTES, certificates, proxy_for
from smallfirst.serving.errors import ApiError
from smallfirst.traffic.gateway.access import Credentials
from smallfirst.traffic.gateway.http import (
    OWN_PREFIX,
    READABLE,
    Client,
    Copy,
    GatewayRequest,
    RawHeaders,
    UpstreamAnswer,
    header_of,
)
from smallfirst.traffic.settings import GatewaySettings, UpstreamSettings

UPSTREAM_HEADER = b"x-smallfirst-upstream"
"""A client may name the upstream itself, for routes whose requests name no model."""
HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
"""Headers of one connection (RFC 9110, 7.6.1); never passed on."""
_OF_OUR_CONNECTION = HOP_BY_HOP | {b"host", b"expect", b"content-length"}
_KEY_HEADERS = frozenset({b"authorization", b"x-api-key", b"api-key"})
_NOT_ADDED = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_IDLE_TLS_S = 60.0
"""Idle connections of providers are used again for longer: a new one costs two round trips more."""
_PIECE_BYTES = 256 * 1024
_CONNECT_S = 10.0
"""Longest wait for a connection; then 502."""
_MOST_CONNECTIONS = 1_000
"""To one upstream; further requests wait for one."""


class UpstreamFailed(ApiError):
    """The upstream gave no answer, or broke it off."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, message, kind="upstream_error", code=code)


class Target(NamedTuple):
    """Where a request goes."""

    upstream: str
    """Name in the settings."""
    model: str | None = None
    """What the upstream calls the model; None: as it was asked for."""


class _Connection(NamedTuple):
    base_url: str
    key_header: tuple[str, str] | None
    session: aiohttp.ClientSession
    proxy: str | None


class Upstreams:
    """All upstreams of the settings. Make it inside a running loop and close it there. Raise ConfigError."""

    def __init__(self, settings: GatewaySettings, credentials: Credentials | None = None) -> None:
        """`credentials` are told what each upstream answers; without them nobody's are asked for."""
        self.settings, self._credentials = settings, credentials
        self._open = {name: _connect(upstream) for name, upstream in settings.upstreams.items()}
        self._first = Target(next(iter(settings.upstreams)))

    async def aclose(self) -> None:
        for one in self._open.values():
            await one.session.close()

    def target(self, model: str | None, headers: RawHeaders = []) -> Target:  # noqa: B006
        """Return where a request for `model` goes; a header of the client's comes first, then `models`.

        Raise ApiError if the header names no upstream.
        """
        if chosen := header_of(headers, UPSTREAM_HEADER):
            if chosen in self._open:
                return Target(chosen)
            message = f"{UPSTREAM_HEADER.decode()}: no upstream is called {chosen[:100]!r}."
            raise ApiError(400, message, code="unknown_upstream")
        route = self.settings.models.get(model) if model is not None else None
        return Target(route.upstream, route.name) if route else self._first

    def own_target(self, request: GatewayRequest, model: str) -> Target | None:
        """Return where requests for `model` go; None if this one goes elsewhere, or its client says where."""
        if request.header(UPSTREAM_HEADER):
            return None
        own = self.target(model)
        return own if self.place(request)[0] == own else None

    def accepts(self, request: GatewayRequest, target: Target, model: str) -> bool:
        """Return True if its client may ask for `model` there: by the proxy's own key, or as `Credentials` knows."""
        one = self._open[target.upstream]
        if one.key_header is not None or self._credentials is None:
            return True
        return self._credentials.accepts(request, one.base_url, model)

    def place(self, request: GatewayRequest) -> tuple[Target, bytes]:
        """Return where a whole request goes, and its body with the model's name there."""
        model = model_of(request) if self.settings.models and request.body else None
        target = self.target(model, request.headers)
        if target.model in (None, model):
            return target, request.body
        named = json.dumps({**(request.json() or {}), "model": target.model}, ensure_ascii=False)
        return target, named.encode("utf-8", "surrogatepass")

    async def send(
        self, request: GatewayRequest, target: Target, body: bytes | AsyncIterator[bytes], *, readable: bool = False
    ) -> Response:
        """Pass a request on and return the response, its body unread. Raise UpstreamFailed.

        With `readable`, only content codings that the proxy can read are offered to the upstream.
        """
        one = self._open[target.upstream]
        headers = _passed_on(request.headers, one.key_header)
        if readable:
            headers = [(name, _readable(value) if name == "accept-encoding" else value) for name, value in headers]
        data: Any = body or None
        if not isinstance(body, bytes) and (length := request.header(b"content-length")):
            headers.append(("Content-Length", length.decode("latin-1")))
        elif isinstance(body, bytes) and len(body) > _PIECE_BYTES:
            data = io.BytesIO(body)  # which is written in pieces
        try:
            response = await one.session.request(
                request.method,
                _url(one.base_url, request),
                data=data,
                headers=headers,
                allow_redirects=False,
                proxy=one.proxy,
                skip_auto_headers=_NOT_ADDED,
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _failure(error, target.upstream) from None
        if self._credentials is not None and one.key_header is None:
            self._credentials.answered(request, one.base_url, response.status)
        answer = Response(response, target.upstream)
        if not (200 <= answer.status <= 599 and _WRITABLE.fullmatch(b"".join(value for _, value in answer.headers))):
            response.close()
            raise _failure(ValueError(), target.upstream)
        return answer

    async def ask(self, request: GatewayRequest) -> UpstreamAnswer:
        """Send a whole request on the proxy's own account and return the whole answer. Raise UpstreamFailed.

        It has MAX_BODY_BYTES at most, and its upstream's `timeout_s` in all.
        """
        began, answer = time.perf_counter(), bytearray()
        target, body = self.place(request)
        try:
            async with asyncio.timeout(self.settings.upstreams[target.upstream].timeout_s):
                response = await self.send(request, target, body, readable=True)
                try:
                    async for piece in response.pieces():
                        answer += piece
                        if len(answer) > MAX_BODY_BYTES:
                            raise _failure(ValueError(), target.upstream)
                finally:
                    response.close()
        except TimeoutError as error:
            raise _failure(error, target.upstream) from None
        latency_ms = 1000 * (time.perf_counter() - began)
        return UpstreamAnswer(response.status, response.headers, bytes(answer), response.upstream, latency_ms)


_WRITABLE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
"""Bytes of header values that our own server can send; aiohttp reads others as well. https://www.rfc-editor.org/rfc/rfc9110#section-5.5"""


_INERT = re.compile(
    rb"(?:application/(?:[\w.-]+\+)?json|application/(?:octet-stream|x-ndjson|jsonl)|text/(?:event-stream|plain|csv)"
    rb"|(?:audio|video)/[\w.+-]+|image/(?:png|jpeg|gif|webp))(?: *;[^,]*)?",
    re.IGNORECASE,
)
"""Content types of which no browser makes a page."""
_SANDBOX = ((b"content-security-policy", b"sandbox"), (b"x-content-type-options", b"nosniff"))
"""Added to all others: the proxy's own page has the same origin, and nothing of an upstream runs in it."""


class Response:
    """An upstream's response whose body is read piece by piece."""

    def __init__(self, response: aiohttp.ClientResponse, upstream: str) -> None:
        self._response, self.upstream, self.status = response, upstream, response.status
        values = response.headers.getall("Connection", ())
        named = {part.strip() for value in values for part in value.lower().encode().split(b",")}
        dropped = HOP_BY_HOP | named if named else HOP_BY_HOP
        self.headers: RawHeaders = [
            (key, value)
            for name, value in response.raw_headers
            if (key := name.lower()) not in dropped and not key.startswith(OWN_PREFIX)
        ]
        kinds = [value for key, value in self.headers if key == b"content-type"]
        if self.status not in (204, 304) and not (len(kinds) == 1 and _INERT.fullmatch(kinds[0])):
            self.headers += _SANDBOX

    @property
    def length(self) -> int | None:
        """Bytes of the body that will follow; None if that is not known."""
        value = self._response.headers.get("Content-Length", "")
        return int(value) if value.isdigit() and self._response.method != "HEAD" else None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raise UpstreamFailed if it breaks off."""
        content = self._response.content
        try:
            while piece := await content.readany():
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _failure(error, self.upstream) from None

    def close(self) -> None:
        """Return the connection to the pool if the body was read to its end, else close it."""
        self._response.close()


def _connect(upstream: UpstreamSettings) -> _Connection:
    key, host = upstream.key(), urlsplit(upstream.base_url).hostname or ""
    header = None
    if key is not None:
        header = (upstream.api_key_header, f"Bearer {key}" if upstream.api_key_header == "authorization" else key)
    idle_s = _IDLE_TLS_S if upstream.base_url.startswith("https:") else IDLE_TIMEOUT_S
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=_MOST_CONNECTIONS, keepalive_timeout=idle_s, ssl=certificates(upstream.base_url)
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        **LIVE,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=upstream.timeout_s),
        max_line_size=64 * 1024,
        max_field_size=64 * 1024,
    )
    proxy = None if is_loopback(host) else proxy_for(upstream.base_url)
    return _Connection(upstream.base_url, header, session, proxy)


def _url(base_url: str, request: GatewayRequest) -> yarl.URL:
    query = b"?" + request.query if request.query else b""
    return yarl.URL(f"{base_url}{request.path.removeprefix('/v1')}{query.decode('latin-1')}", encoded=True)


def _passed_on(headers: RawHeaders, key_header: tuple[str, str] | None) -> list[tuple[str, str]]:
    """Return the client's headers for the upstream, with the upstream's own key in the place of the client's."""
    dropped = _OF_OUR_CONNECTION
    if key_header is not None:
        dropped = dropped | _KEY_HEADERS
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            dropped = dropped | {part.strip() for part in value.lower().split(b",")}
    kept = [
        (name.decode("latin-1"), _text(value))
        for name, value in headers
        if name not in dropped and not name.startswith(OWN_PREFIX)
    ]
    return kept if key_header is None else [*kept, key_header]


def _text(value: bytes) -> str:
    """Return a header's value as text that aiohttp, which writes UTF-8, writes as the same bytes wherever it can."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _readable(offered: str) -> str:
    """Return the content codings of an `accept-encoding` that can be read here."""
    return ", ".join(part for part in offered.split(",") if part.partition(";")[0].strip() in READABLE) or "identity"


def _failure(error: Exception, upstream: str) -> UpstreamFailed:
    """Return what a client can be told: no address, which may be internal, and no key."""
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)):
        return UpstreamFailed(502, "upstream_unreachable", f'The upstream "{upstream}" cannot be reached.')
    if isinstance(error, TimeoutError):
        return UpstreamFailed(504, "upstream_timeout", f'The upstream "{upstream}" did not answer in time.')
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | ConnectionError):
        return UpstreamFailed(502, "upstream_disconnected", f'The upstream "{upstream}" broke the connection off.')
    return UpstreamFailed(502, "upstream_invalid", f'What the upstream "{upstream}" answered is not valid HTTP.')


def model_of(request: GatewayRequest) -> str | None:
    """Return the model that a JSON body names at its top level; None if there is none."""
    model = (request.json() or {}).get("model")
    return model if isinstance(model, str) else None


async def pass_back(response: Response, client: Client, copy: Copy | None, before_end: Callable[[], None]) -> None:
    """Pass an upstream's answer on to the client as it arrives. Raise UpstreamFailed if it breaks off.

    `before_end` is called once, when all of it is there, just before the client gets the end.
    """
    await client.start(response.status, response.headers)
    left, told, ended = response.length, False, False
    async for piece in response.pieces():
        if copy is not None:
            copy.add(piece)
        if left is not None:
            left -= len(piece)
        ended = left == 0
        if not told and (ended or (copy is not None and copy.says_done)):
            told = True
            before_end()
        await client.piece(piece, more=not ended)
    if not told:
        before_end()
    if not ended:
        await client.piece(b"", more=False)
