"""Bounds on what requests may take, shared by keys: places, turns, prompt tokens; body size and type."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from smallfirst.serving.errors import RETRY_AFTER_S, ApiError, ClientDisconnected

KEY_RATIO = 3
"""What a key may hold of a shared capacity, as a multiple of what is left."""


class Shares:
    """A capacity that keys share: a key may hold three times what is left, so one alone leaves a quarter free.

    These are the dynamic thresholds by which switches share a buffer (Choudhury and Hahne, 1998). Requests without a
    key, which only a server for one user accepts, have no threshold.
    """

    def __init__(self, capacity: int, what: str) -> None:
        """`what` names the units in refusals."""
        self.capacity = self.free = capacity
        self._what = what
        self._held: dict[str, int] = {}

    @property
    def used(self) -> int:
        return self.capacity - self.free

    def fits(self, key: str, n: int = 1) -> bool:
        """Return True if `key` may take `n` units now; whoever is alone may take any number."""
        left = self.free - n
        if left < 0 or not key:
            return left >= 0 or not self.used
        return self._held.get(key, 0) + n <= KEY_RATIO * (left + 1) or not self.used

    def take(self, key: str, n: int = 1) -> None:
        self.free -= n
        self._held[key] = self._held.get(key, 0) + n

    def give_back(self, key: str, n: int = 1) -> None:
        self.free += n
        self._held[key] -= n
        if not self._held[key]:
            del self._held[key]

    def hold(self, key: str, n: int = 1) -> AbstractContextManager[None]:
        """Return a context that holds `n` units. It raises ApiError 429 for a key's share, 503 if too few are left."""
        return _Hold(self, key, n)

    def refusal(self, n: int) -> ApiError:
        """Return the error for `n` units that do not fit."""
        if n <= self.free:
            message = f"This key has its share of the server's {self._what}; try again shortly."
            return ApiError(429, message, kind="requests", code="rate_limit_exceeded", retry_after_s=RETRY_AFTER_S)
        message = f"The server is at its limit of {self._what}; try again shortly."
        return ApiError(503, message, kind="server_error", code="overloaded", retry_after_s=RETRY_AFTER_S)


class _Hold:
    """A class, as a generator would cost several times as much, and each request holds four."""

    __slots__ = ("_key", "_n", "_shares")

    def __init__(self, shares: Shares, key: str, n: int) -> None:
        self._shares, self._key, self._n = shares, key, n

    def __enter__(self) -> None:
        if not self._shares.fits(self._key, self._n):
            raise self._shares.refusal(self._n)
        self._shares.take(self._key, self._n)

    def __exit__(self, *_: object) -> None:
        self._shares.give_back(self._key, self._n)


class Turns(Shares):
    """Shares that are waited for; keys take turns, so that one with many requests delays another by one at most."""

    def __init__(self, capacity: int, *, most_of_key: int | None = None) -> None:
        """`most_of_key`: turns that a key may hold at once, even alone."""
        super().__init__(capacity, "turns")
        self._most_of_key = most_of_key or capacity
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def fits(self, key: str, n: int = 1) -> bool:
        within = not key or self._held.get(key, 0) + n <= self._most_of_key
        return within and super().fits(key, n)

    def turn(self, key: str) -> AbstractAsyncContextManager[None]:
        """Return a context that waits for a turn and holds it."""
        return _Turn(self, key)

    def give_back(self, key: str, n: int = 1) -> None:
        super().give_back(key, n)
        while (chosen := next(filter(self.fits, self._waiting), None)) is not None:
            waiting = self._waiting.pop(chosen)
            granted = waiting.popleft()
            if waiting:
                self._waiting[chosen] = waiting  # behind the other keys
            self.take(chosen)
            granted.set_result(None)

    async def wait(self, key: str) -> None:
        """Take a turn as soon as there is one. Whoever waits does not fit, so nobody is overtaken."""
        if self.fits(key):
            self.take(key)
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():
                self.give_back(key)
            else:
                self._waiting[key].remove(granted)
                if not self._waiting[key]:
                    del self._waiting[key]
            raise


class _Turn:
    __slots__ = ("_key", "_turns")

    def __init__(self, turns: Turns, key: str) -> None:
        self._turns, self._key = turns, key

    async def __aenter__(self) -> None:
        await self._turns.wait(self._key)

    async def __aexit__(self, *_: object) -> None:
        self._turns.give_back(self._key)


N_READERS = 2
"""Documents that are read at once, each by a process of its own of up to half a gigabyte."""


class Admission:
    """Bounds on the answers under way or waiting, on their prompt tokens and on documents that are read."""

    def __init__(self, *, in_flight: int, queue: int, tokens: int = 2**31) -> None:
        self.places = Shares(in_flight + queue, "answers")
        """Answers under way or waiting."""
        self.turns = Turns(in_flight)
        self.prompt_tokens = Shares(tokens, "prompt tokens")
        self.readers = Turns(N_READERS, most_of_key=N_READERS - 1)


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


async def body_chunks(receive: Receive, *, max_bytes: int, max_read_bytes: int) -> AsyncGenerator[bytes, None]:
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
