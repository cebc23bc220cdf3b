"""The slots of an engine that answers a few requests side by side, and the bounded queue for them.

The time to the first token could tell one tenant what another has asked, so a slot that changes hands starts without
its cache, and tenants get their own slot back where it is free.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from smallfirst.base.errors import Unavailable

MAX_QUEUED_REQUESTS = 32
"""Requests of tenants that may wait for a slot; one more is refused."""


class Slot(NamedTuple):
    """Where a request is answered."""

    number: int
    may_reuse_cache: bool
    """True if the last prompt read here came from the same tenant."""


class _Waiter(NamedTuple):
    tenant: str
    loop: asyncio.AbstractEventLoop
    given: asyncio.Future[Slot]


class SlotPool:
    """Gives out slots first come, first served, to any number of event loops."""

    def __init__(self, n_slots: int, *, name: str) -> None:
        self._name, self._n_slots = name, n_slots
        self._lock = threading.Lock()
        self._free = deque(range(n_slots))  # longest idle first
        self._tenants: dict[int, str] = {}
        self._queue: deque[_Waiter] = deque()

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_queued(self) -> int:
        return len(self._queue)

    @asynccontextmanager
    async def acquire(self, tenant: str, *, timeout_s: float) -> AsyncIterator[Slot]:
        """Yield a slot. Raise Unavailable if the queue is full (never without a tenant), or after `timeout_s`."""
        waiter: _Waiter | None = None
        with self._lock:
            if self._free and not self._queue:
                slot = self._take(tenant)
            elif tenant and len(self._queue) >= MAX_QUEUED_REQUESTS:
                raise Unavailable(
                    f"{self._name} is busy: {self._n_slots} requests in flight, {len(self._queue)} queued",
                    hint="retry after a while",
                )
            else:
                loop = asyncio.get_running_loop()
                waiter = _Waiter(tenant, loop, loop.create_future())
                self._queue.append(waiter)
        if waiter is not None:
            slot = await self._wait(waiter, timeout_s if tenant else None)
        try:
            yield slot
        except BaseException:
            self._give_back(slot, used=False)
            raise
        self._give_back(slot)

    async def _wait(self, waiter: _Waiter, timeout_s: float | None) -> Slot:
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(waiter.given)
        except TimeoutError:
            self._leave(waiter)
            message = f"{self._name} is busy: no slot was free within {timeout_s:g} s"
            raise Unavailable(message, hint="retry after a while") from None
        except BaseException:
            self._leave(waiter)
            raise

    def _leave(self, waiter: _Waiter) -> None:
        """Take a waiter out of the queue; a slot that is on its way to it goes to the next one."""
        with self._lock:
            if waiter in self._queue:
                self._queue.remove(waiter)
                return
        waiter.given.add_done_callback(lambda given: self._give_back(given.result(), used=False))

    def _take(self, tenant: str) -> Slot:
        """Take the tenant's own slot, else one that no tenant has used, else the longest idle one. Hold the lock."""
        own = [number for number in self._free if self._tenants.get(number) == tenant]
        unused = [number for number in self._free if number not in self._tenants]
        number = (own[-1:] or unused or [self._free[0]])[0]
        self._free.remove(number)
        self._tenants[number] = tenant
        return Slot(number, may_reuse_cache=bool(own))

    def _give_back(self, slot: Slot, *, used: bool = True) -> None:
        """Free the slot, and give free ones to those who wait longest, if their event loop still runs.

        Where it is not certain that its tenant's prompt was read there, the next one starts without its cache.
        """
        with self._lock:
            self._free.append(slot.number)
            if not used:
                self._tenants.pop(slot.number)
            while self._free and self._queue:
                waiter, tenants = self._queue.popleft(), dict(self._tenants)
                given = self._take(waiter.tenant)
                try:
                    waiter.loop.call_soon_threadsafe(waiter.given.set_result, given)
                except RuntimeError:  # its loop is closed
                    self._free.append(given.number)
                    self._tenants = tenants
