"""The slots of an engine that answers a few requests side by side, and the bounded queue for them.

The time to the first token could tell one tenant what another has asked, so a slot that changes hands starts without
its cache, and tenants get their own slot back where it is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from smallfirst.errors import Unavailable


class Slot(NamedTuple):
    """Where a request is answered."""

    number: int
    may_reuse_cache: bool
    """True if the last prompt read here came from the same tenant."""


class _Waiter:
    def __init__(self, tenant: str, n_characters: int) -> None:
        self.tenant, self.n_characters = tenant, n_characters
        self.loop = asyncio.get_running_loop()
        self.woken: asyncio.Future[None] = self.loop.create_future()
        self.slot: Slot | None = None

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class SlotPool:
    """Gives out slots first come, first served, to any number of event loops."""

    def __init__(self, n_slots: int, *, name: str, max_queued_requests: int, max_queued_characters: int) -> None:
        self._name, self._max_requests, self._max_characters = name, max_queued_requests, max_queued_characters
        self._lock = threading.Lock()
        self._free = deque(range(n_slots))  # longest idle first
        self._tenants: dict[int, str] = {}
        self._queue: deque[_Waiter] = deque()
        self._n_slots = n_slots

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_queued(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def acquire(self, tenant: str, n_characters: int, *, timeout_s: float) -> AsyncIterator[Slot]:
        """Yield a slot. Raise Unavailable if the queue is full (never without a tenant), or after `timeout_s`."""
        waiter = _Waiter(tenant, n_characters)
        with self._lock:
            if self._free and not self._queue:
                waiter.slot = self._take(tenant)
            else:
                if tenant:
                    self._check_room(n_characters)
                self._queue.append(waiter)
        try:
            if waiter.slot is None:
                await self._wait(waiter, timeout_s if tenant else None)
            assert waiter.slot is not None
            yield waiter.slot
        finally:
            with self._lock:
                if waiter.slot is not None:
                    self._free.append(waiter.slot.number)
                    self._serve_queue()
                else:
                    with contextlib.suppress(ValueError):
                        self._queue.remove(waiter)

    async def _wait(self, waiter: _Waiter, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.woken
        except TimeoutError:
            message = f"{self._name} is busy: no slot was free within {timeout_s:g} s"
            raise Unavailable(message, hint="retry after a while") from None

    def _check_room(self, n_characters: int) -> None:
        queued = sum(waiter.n_characters for waiter in self._queue)
        if len(self._queue) < self._max_requests and queued + n_characters <= self._max_characters:
            return
        raise Unavailable(
            f"{self._name} is busy: {self._n_slots} requests in flight, {len(self._queue)} with {queued} characters "
            f"queued; the queue takes at most {self._max_requests} requests with {self._max_characters} characters",
            hint="retry after a while",
        )

    def _take(self, tenant: str) -> Slot:
        """Take the tenant's own slot, else one that no tenant has used, else the longest idle one. Hold the lock."""
        own = [number for number in self._free if self._tenants.get(number) == tenant]
        unused = [number for number in self._free if number not in self._tenants]
        number = (own[-1:] or unused or [self._free[0]])[0]
        self._free.remove(number)
        self._tenants[number] = tenant
        return Slot(number, may_reuse_cache=bool(own))

    def _serve_queue(self) -> None:
        """Give free slots to those who wait longest, if their event loop still runs. Hold the lock."""
        while self._free and self._queue:
            waiter, tenants = self._queue.popleft(), dict(self._tenants)
            # Another thread may run the waiter as soon as it is woken, so its slot is set before.
            waiter.slot = self._take(waiter.tenant)
            try:
                waiter.loop.call_soon_threadsafe(waiter.wake)
            except RuntimeError:  # its loop is closed
                self._free.append(waiter.slot.number)
                waiter.slot, self._tenants = None, tenants
