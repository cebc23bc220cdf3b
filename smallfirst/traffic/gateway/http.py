"""Requests and responses of the proxy, and its own errors in the shape that OpenAI's clients understand."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from smallfirst.serving.errors import ApiError, ClientDisconnected
from smallfirst.serving.wire import raw_headers
from smallfirst.traffic.task_source import AnswerFormat
from smallfirst.traffic.wire import Json, read_stream

_log = logging.getLogger("smallfirst.takeover")
RawHeaders = list[tuple[bytes, bytes]]
"""Names in lower case, in the order in which they came."""
ERROR_HEADER = b"x-smallfirst-error"
"""On every answer that is the proxy's own error and not the upstream's."""
OWN_PREFIX = b"x-smallfirst-"
"""Headers of requests that are for the proxy and not passed on."""

READABLE = frozenset({"identity", "gzip", "deflate"})
"""Content codings that are read here."""
MAX_READ_BYTES = 16 * 1024 * 1024
"""Longest decompressed body that is read."""
_UNREAD: Any = object()


@dataclass(slots=True)
class GatewayRequest:
    """A request as it arrived, its body whole."""

    method: str
    path: str
    """As it was sent, escapes included, without the query: `/v1/chat/completions`."""
    query: bytes
    headers: RawHeaders
    """With the client's own key: never store them."""
    body: bytes
    """Whole; empty if the body is passed on while it arrives (see `GatewaySettings.max_buffered_bytes`)."""
    tenant: str = "default"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Unique; that of its Exchange as well."""
    at: float = field(default_factory=time.time)
    """When it arrived, in seconds since the epoch."""
    watched: Any = None
    """Set in `TakenOverTasks.answer` where the upstream's answer is wanted in `passed`: what is known until then."""
    credential: tuple[str, str] | None = None
    """Set by `Credentials.accepts`, which the upstream's answer then renews: a hash, never a key."""
    _json: Any = _UNREAD

    def json(self) -> dict[str, Any] | None:
        """Return the body as JSON, parsed once: share it, do not change it.

        None if it is no object, or one that parsers read differently: no UTF-8, NaN, or a name twice in an object.
        """
        if self._json is _UNREAD:
            try:
                value = json.loads(self.body.decode(), object_pairs_hook=_once, parse_constant=int)  # NaN is no int
            except (ValueError, RecursionError):
                value = None
            self._json = value if isinstance(value, dict) else None
        found: dict[str, Any] | None = self._json
        return found

    def rewrite(self, body: dict[str, Any]) -> None:
        """Take this as the body that arrived."""
        self.body, self._json = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"), body

    def header(self, name: bytes) -> bytes:
        """Return a header's value by its name in lower case, or an empty string."""
        return next((value for key, value in self.headers if key == name), b"")


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(members)) < len(members):
        raise ValueError("a name stands twice in an object")
    return found


class UpstreamAnswer(NamedTuple):
    """The whole answer of an upstream."""

    status: int
    headers: RawHeaders
    body: bytes
    """As it came, compressed if `content-encoding` says so; `read_response` reads it."""
    upstream: str
    """Name in the settings."""
    latency_ms: float
    """From the request to the last byte."""


class Captured(NamedTuple):
    """A question to an upstream and its answer, as the capture is to keep them."""

    request: bytes
    """A JSON object."""
    answer: UpstreamAnswer


class GatewayResponse(NamedTuple):
    """An answer of the proxy's own, or of an upstream that was asked for it."""

    status: int
    headers: RawHeaders
    body: bytes
    captured: Captured | None = None
    """What to keep as an exchange; None: nothing. A small model's own answers must not be: nobody learns from them."""


def read_response(headers: RawHeaders, body: bytes) -> dict[str, Any] | None:
    """Return an upstream's answer in the form without streaming; None if it cannot be read, or is no JSON object."""
    try:
        plain = _decompressed(body, header_of(headers, b"content-encoding").strip().lower())
        is_stream = header_of(headers, b"content-type").lower().startswith("text/event-stream")
        value = read_stream(plain) if is_stream else json.loads(plain)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, zlib.error):
        return None
    return value if isinstance(value, dict) else None


def _decompressed(body: bytes, coding: str) -> bytes:
    if coding in ("", "identity"):
        return body
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(coding)
    windows = (15, -15) if coding == "deflate" else (31,)  # deflate comes with a head or without
    for window in windows:
        reader = zlib.decompressobj(window)
        try:
            plain = reader.decompress(body, MAX_READ_BYTES)
        except zlib.error:
            continue
        if reader.eof and not reader.unconsumed_tail:
            return plain
    raise ValueError("too long, or cut off")


def header_of(headers: RawHeaders, name: bytes) -> str:
    """Return a header's value by its name in lower case, or an empty text."""
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def json_response(value: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> GatewayResponse:
    """Return `value` as JSON."""
    return GatewayResponse(status, [(b"content-type", b"application/json"), *headers], json.dumps(value).encode())


def refusal(error: ApiError) -> GatewayResponse:
    """Return an error of the proxy as its answer; the code stands in the header `x-smallfirst-error` as well."""
    more = {ERROR_HEADER.decode(): error.code or "refused", **error.headers}
    return json_response(error.body, error.status, *raw_headers(more))


# Requests of a task

AskAgain = Callable[[], Awaitable[tuple[int, Json | None]]]
"""Send a request to its upstream once more, not streamed; return the status and the response's body."""


class TaskRequest(NamedTuple):
    """A request that follows a task's wording."""

    id: str
    path: str
    body: Json
    text: str
    """The case that it asks about."""
    again: AskAgain
    """Sends it to its upstream once more."""
    answer_format: AnswerFormat
    """Format of the answers to its wording."""
    tenant: str = "default"
    may_ask: bool = True
    """False while the upstream has not shown that it accepts the client's credential; then it answers itself."""


class BackgroundTasks:
    """Tasks that no answer waits for. What they raise is logged: no answer depends on them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin `work` in the running loop."""
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def wait(self, timeout_s: float = 10) -> None:
        """Wait for what is running, at most so long."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        _log.exception("work after an answer failed")


# The client's side

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


_TAIL_BYTES = 20


class BrokenOff(Exception):
    """The answer ended in the middle: the server closes the connection, as the upstream did."""


class Client:
    """The client's side of one request."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._read, self._answered = asyncio.Event(), False
        self.gone = False
        """True if the client has closed its connection before it was answered."""
        self.started = False
        """True once the head of an answer is sent."""

    async def read(self, most: int) -> tuple[bytes, bool]:
        """Return the body, or its beginning of more than `most` bytes and True if there is more.

        Raise ClientDisconnected.
        """
        pieces: list[bytes] = []
        size, more = 0, True
        while more and size <= most:
            piece, more = await self._piece()
            pieces.append(piece)
            size += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), more

    async def rest(self, beginning: bytes) -> AsyncIterator[bytes]:
        """Yield the body from its beginning on as it arrives. Raise ClientDisconnected."""
        yield beginning
        more = True
        while more:
            piece, more = await self._piece()
            if piece:
                yield piece

    async def _piece(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientDisconnected
        if not (more := bool(message.get("more_body"))):
            self._read.set()
        return message.get("body", b""), more

    async def discard(self, most: int) -> None:
        """Read up to `most` bytes more: else a client that sends sees no answer. Raise ClientDisconnected."""
        async for piece in self.rest(b""):
            most -= len(piece)
            if most < 0:
                return

    async def until_gone(self) -> Message:
        """Return what the server says of the client after its body, for `cancel_on_disconnect`."""
        await self._read.wait()
        message = await self._receive()
        if self._answered:  # the server reports the end of an answer as a disconnect, too
            await asyncio.Event().wait()
        self.gone = message["type"] == "http.disconnect"
        return message

    async def start(self, status: int, headers: RawHeaders) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self.started = True

    async def piece(self, body: bytes, *, more: bool) -> None:
        if not more:
            self._answered = True
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, response: GatewayResponse) -> None:
        """Send an answer of the proxy's own."""
        headers = [h for h in response.headers if h[0] != b"content-length"]
        await self.start(response.status, [*headers, (b"content-length", b"%d" % len(response.body))])
        await self.piece(response.body, more=False)


class Copy:
    """A copy of an answer that is passed back, up to a size."""

    def __init__(self, most: int) -> None:
        self._pieces: list[bytes] = []
        self._left = most
        self._tail = b""
        self.whole = True
        """False once the answer was larger."""

    def add(self, piece: bytes) -> None:
        self._left -= len(piece)
        if self._left < 0:
            self._pieces.clear()
            self.whole = False
        else:
            self._pieces.append(piece)
        self._tail = (self._tail + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    @property
    def says_done(self) -> bool:
        """True once OpenAI's mark of a stream's end is there: clients may go then, before the answer itself ends."""
        return self._tail.rstrip().endswith(b"data: [DONE]")

    def body(self) -> bytes:
        return b"".join(self._pieces)
