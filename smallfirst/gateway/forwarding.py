"""One request on its way: read from the client, sent on, and its answer passed back piece by piece as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from smallfirst.gateway.http import GatewayResponse, RawHeaders
from smallfirst.gateway.upstreams import Response
from smallfirst.serving.admission import ClientDisconnected

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
        self.first_at: float | None = None
        """When its first byte came, of `time.perf_counter`."""

    def add(self, piece: bytes) -> None:
        if self.first_at is None:
            self.first_at = time.perf_counter()
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
