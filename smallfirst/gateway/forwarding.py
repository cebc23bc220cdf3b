"""One request on its way: read from the client, sent on, and its answer passed back piece by piece as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from smallfirst.gateway.http import GatewayResponse, RawHeaders
from smallfirst.gateway.upstreams import Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


_TAIL_BYTES = 20


class ClientGone(Exception):
    """The client has closed its connection; nobody waits for an answer."""


class BrokenOff(Exception):
    """The answer ended in the middle: the server closes the connection, as the upstream did."""


class Client:
    """The client's side of one request."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._watcher: asyncio.Task[None] | None = None
        self._answered = self._gone = False
        self.started = False
        """True once the head of an answer is sent."""

    async def read(self, most: int) -> tuple[bytes, bool]:
        """Return the body, or its beginning of more than `most` bytes and True if there is more. Raise ClientGone."""
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            piece = message.get("body", b"")
            more = bool(message.get("more_body"))
            if not pieces and not more:
                return piece, False
            pieces.append(piece)
            size += len(piece)
            if not more or size > most:
                return b"".join(pieces), more

    async def rest(self, beginning: bytes) -> AsyncIterator[bytes]:
        """Yield the body from its beginning on as it arrives. Raise ClientGone."""
        yield beginning
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                self._gone = True
                raise ClientGone
            more = bool(message.get("more_body"))
            if message.get("body"):
                yield message["body"]
        self.watch()

    async def discard(self, most: int) -> None:
        """Read up to `most` bytes more of the body: else a client that sends sees no answer. Raise ClientGone."""
        async for piece in self.rest(b""):
            most -= len(piece)
            if most < 0:
                return

    def watch(self) -> None:
        """Cancel the running task, which answers this client, as soon as the client goes; the body must be read."""
        task = asyncio.current_task()
        assert task is not None
        self._watcher = asyncio.get_running_loop().create_task(self._wait_for_end(task))

    async def _wait_for_end(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._answered:
            self._gone = True
            task.cancel()

    @property
    def gone(self) -> bool:
        """True if the client has closed its connection before it was answered."""
        return self._gone

    def end(self) -> None:
        """Stop watching."""
        self._answered = True
        if self._watcher is not None:
            self._watcher.cancel()

    async def start(self, status: int, headers: RawHeaders) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, body: bytes, *, more: bool) -> None:
        if not more:
            self._answered = True  # the server reports the end of an answer as a disconnect, too
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, response: GatewayResponse) -> None:
        """Send an answer of the proxy's own."""
        headers, body = [h for h in response.headers if h[0] != b"content-length"], response.body
        if isinstance(body, bytes):
            headers.append((b"content-length", b"%d" % len(body)))
            await self.start(response.status, headers)
            await self.piece(body, more=False)
            return
        await self.start(response.status, headers)
        async for piece in body:
            await self.piece(piece, more=True)
        await self.piece(b"", more=False)


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


async def pass_back(
    response: Response, client: Client, copy: Copy | None, before_end: Callable[[], None] = lambda: None
) -> None:
    """Pass an upstream's answer on to the client as it arrives. Raise UpstreamFailed if it breaks off.

    `before_end` is called when all of it is there, just before the client gets the end.
    """
    told = False

    def tell() -> None:
        nonlocal told
        if not told:
            told = True
            before_end()

    await client.start(response.status, response.headers)
    left = response.length
    async for piece in response.pieces():
        if copy is not None:
            copy.add(piece)
        if left is not None:
            left -= len(piece)
        if left == 0 or (copy is not None and copy.says_done):
            tell()
        await client.piece(piece, more=left != 0)
    if left != 0:
        tell()
        await client.piece(b"", more=False)
