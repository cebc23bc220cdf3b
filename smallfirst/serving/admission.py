"""What a request needs before a model sees it: a place, a type, a size, and somebody who waits.

All bounds are checked while bytes arrive, so no request can make the server hold more than it
promised to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from smallfirst.models.protocol import Request
from smallfirst.serving.openai.errors import ApiError

RETRY_AFTER_S = 2
"""Seconds a refused client is asked to wait; about the time that one large answer takes."""


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more."""


class Admission:
    """Bounded entry: so many requests are worked on, so many wait, of so many prompt tokens; the rest are refused."""

    def __init__(self, *, in_flight: int, queue: int, tokens: int = 2**31) -> None:
        """An empty house for `in_flight` + `queue` requests that hold at most about `tokens` prompt tokens."""
        self.turn = asyncio.Semaphore(in_flight)
        self._places, self._most_tokens = in_flight + queue, tokens
        self.inside, self.tokens_in_flight = 0, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place, held from the body's first byte on. Raises WireError 503 if all are taken."""
        if self.inside >= self._places:
            raise _overloaded("requests")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @contextmanager
    def load(self, tokens: int) -> Iterator[None]:
        """Room for a prompt. Raises WireError 503 if there is none; one that nobody else competes with always has."""
        if self.tokens_in_flight and self.tokens_in_flight + tokens > self._most_tokens:
            raise _overloaded("prompt tokens")
        self.tokens_in_flight += tokens
        try:
            yield
        finally:
            self.tokens_in_flight -= tokens


def estimate_tokens(request: Request) -> int:
    """About how many tokens a prompt has: a third of its bytes, more than most texts need. Only bounds rest on it."""
    return sum(len(message.content.encode()) // 3 + 4 for message in request.messages)


def _overloaded(what: str) -> ApiError:
    return ApiError(
        503,
        f"The server is at its limit of {what}; try again shortly.",
        kind="server_error",
        code="overloaded",
        retry_after_s=RETRY_AFTER_S,
    )


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """The body of a JSON request. Raises WireError 415 or 413, and ClientGone."""
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Also keeps web pages out: a browser sends this type across sites only after asking first.
        raise ApiError(415, "The body must be sent as Content-Type: application/json.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Compressed bodies are not accepted; send plain JSON.")
    body = bytearray()
    async for piece in body_chunks(receive, max_bytes=max_bytes, most_bytes=8 * max_bytes):
        body += piece
    return bytes(body)


async def body_chunks(receive: Receive, *, max_bytes: int, most_bytes: int) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises WireError 413 if it is larger than `max_bytes`, and ClientGone.

    What goes over the limit is read and dropped, up to `most_bytes`: a client that is still sending would otherwise
    meet a broken connection instead of the answer.
    """
    n_bytes, more = 0, True
    while more and n_bytes <= most_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        piece = message.get("body", b"")
        n_bytes += len(piece)
        if n_bytes <= max_bytes:
            yield piece
        more = message.get("more_body", False)
    if n_bytes > max_bytes:
        raise ApiError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large")


async def cancel_on_disconnect(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Nothing once `work` is done. Raises ClientGone, the work cancelled, if the client left.

    The work stays in the caller's task: a task of its own for each request would cost a tenth of a gateway's time.
    """
    here, gone = asyncio.current_task(), False
    assert here is not None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        here.cancel()

    watching = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not gone:
            raise
        here.uncancel()
        raise ClientDisconnected from None
    finally:
        watching.cancel()
