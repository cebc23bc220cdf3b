"""Bounds on what a request may take: place in the server, prompt tokens, body size and type."""

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
"""Seconds that a refused client is asked to wait; about the time that one large answer takes."""


class ClientDisconnected(Exception):
    """The client has left; nobody waits for the answer."""


class Admission:
    """Bounds on the requests that are answered, that wait, and on their prompt tokens."""

    def __init__(self, *, in_flight: int, queue: int, tokens: int = 2**31) -> None:
        self.turn = asyncio.Semaphore(in_flight)
        self._max_requests, self._max_tokens = in_flight + queue, tokens
        self.in_flight, self.tokens_in_flight = 0, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for a request from its first byte on. Raise ApiError 503 if all are taken."""
        if self.in_flight >= self._max_requests:
            raise _overloaded("requests")
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextmanager
    def load(self, tokens: int) -> Iterator[None]:
        """Hold room for a prompt. Raise ApiError 503 if there is none; a prompt that is alone always has room."""
        if self.tokens_in_flight and self.tokens_in_flight + tokens > self._max_tokens:
            raise _overloaded("prompt tokens")
        self.tokens_in_flight += tokens
        try:
            yield
        finally:
            self.tokens_in_flight -= tokens


def estimate_tokens(request: Request) -> int:
    """Return a prompt's tokens, estimated at a third of its bytes: more than most texts need. Only for bounds."""
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
    """Return the body of a JSON request. Raise ApiError 415 or 413, and ClientDisconnected."""
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Also keeps web pages out: a browser sends this type across sites only after asking first.
        raise ApiError(415, "The body must be sent as Content-Type: application/json.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Compressed bodies are not accepted; send plain JSON.")
    body = bytearray()
    async for chunk in body_chunks(receive, max_bytes=max_bytes, max_read_bytes=8 * max_bytes):
        body += chunk
    return bytes(body)


async def body_chunks(receive: Receive, *, max_bytes: int, max_read_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raise ApiError 413 if it is larger than `max_bytes`, and ClientDisconnected.

    The rest of a body that is too large is read and dropped, up to `max_read_bytes`: a client that is still sending
    would otherwise see a broken connection instead of the error.
    """
    n_bytes, more = 0, True
    while more and n_bytes <= max_read_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        n_bytes += len(chunk)
        if n_bytes <= max_bytes:
            yield chunk
        more = message.get("more_body", False)
    if n_bytes > max_bytes:
        raise ApiError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large")


async def cancel_on_disconnect(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run `work`; if the client disconnects, cancel it and raise ClientDisconnected.

    The work stays in the caller's task: a task of its own for each request would cost a tenth of a gateway's time.
    """
    task, disconnected = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not disconnected:
            raise
        task.uncancel()
        raise ClientDisconnected from None
    finally:
        watching.cancel()
