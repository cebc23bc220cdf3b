"""The places of an engine that answers a few requests side by side, and the bounded queue in front of them.

An engine's own queue has no end, and what it remembers of a prompt would be found by the next one, whoever asks: the
time to the first token would tell one tenant what another has asked. So a place remembers whose prompt it read last,
tenants are sent back to their own place where it is free, and a place that changes hands starts from nothing. The
price: a prompt that tenants share is read once by each of them.
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
    """From 0."""
    is_own: bool
    """True if the prompt read here last came from the same tenant, so what is left of it may be used."""


class _Waiter:
    """A request in the queue."""

    def __init__(self, tenant: str, n_characters: int) -> None:
        self.tenant, self.n_characters = tenant, n_characters
        self.loop = asyncio.get_running_loop()
        self.called: asyncio.Future[None] = self.loop.create_future()
        self.place: Slot | None = None

    def call(self) -> None:
        """In its own loop: its place is there."""
        if not self.called.done():
            self.called.set_result(None)


class SlotPool:
    """Hands out places first come, first served, to any event loop."""

    def __init__(self, n_places: int, *, name: str, most_waiting: int, max_queued_characters: int) -> None:
        """All free, and nobody's."""
        self._name, self._most_waiting, self._most_characters = name, most_waiting, max_queued_characters
        self._lock = threading.Lock()
        self._free = deque(range(n_places))  # longest idle first
        self._tenants: dict[int, str] = {}
        self._waiting: deque[_Waiter] = deque()
        self._n_places = n_places

    @property
    def n_free(self) -> int:
        """Places where a request could start now."""
        return len(self._free)

    @asynccontextmanager
    async def turn(self, tenant: str, n_characters: int, *, limit_s: float) -> AsyncIterator[Slot]:
        """A place of one's own. Raises Unavailable if the queue is full, or none is free within `limit_s`.

        Nobody's requests (no tenant) wait for as long as it takes: they are our own program's, an evaluation's of any
        number of rows, or of a server without keys, which admits only so many itself.
        """
        waiter = _Waiter(tenant, n_characters)
        with self._lock:
            if self._free and not self._waiting:
                waiter.place = self._take(tenant)
            else:
                if tenant:
                    self._check_room(n_characters)
                self._waiting.append(waiter)
        try:
            if waiter.place is None:
                await self._called(waiter, limit_s if tenant else None)
            assert waiter.place is not None
            yield waiter.place
        finally:
            with self._lock:
                if waiter.place is not None:
                    self._free.append(waiter.place.number)
                    self._call_next()
                else:
                    with contextlib.suppress(ValueError):
                        self._waiting.remove(waiter)

    async def _called(self, waiter: _Waiter, limit_s: float | None) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await waiter.called
        except TimeoutError:
            raise Unavailable(
                f"{self._name} is busy: no place was free within {limit_s:g} s", hint="ask again in a while"
            ) from None

    def _check_room(self, n_characters: int) -> None:
        """With the lock held. Raises Unavailable if one more would be too many."""
        waiting, n_waiting = sum(waiter.n_characters for waiter in self._waiting), len(self._waiting)
        if n_waiting < self._most_waiting and waiting + n_characters <= self._most_characters:
            return
        raise Unavailable(
            f"{self._name} is busy: {self._n_places} requests under way, {n_waiting} with {waiting} "
            f"characters waiting; at most {self._most_waiting} with {self._most_characters} may wait",
            hint="ask again in a while",
        )

    def _take(self, tenant: str) -> Slot:
        """With the lock held and a place free: the tenant's own, else one that is nobody's, else the longest idle."""
        own = [number for number in self._free if self._tenants.get(number) == tenant]
        unused = [number for number in self._free if number not in self._tenants]
        number = (own[-1:] or unused or [self._free[0]])[0]
        self._free.remove(number)
        self._tenants[number] = tenant
        return Slot(number, is_own=bool(own))

    def _call_next(self) -> None:
        """With the lock held: free places go to those who wait longest, if their loop still runs."""
        while self._free and self._waiting:
            waiter = self._waiting.popleft()
            try:
                waiter.loop.call_soon_threadsafe(waiter.call)
            except RuntimeError:  # its loop is closed
                continue
            waiter.place = self._take(waiter.tenant)
