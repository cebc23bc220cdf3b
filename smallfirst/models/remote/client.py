"""Asking one endpoint: a place in its queue, one retry loop, a retry budget and a circuit breaker.

This is the only place that tries again. Failures before the first byte of an answer are, with growing waits that
honour Retry-After, as far as the budget goes. Timeouts are not: the server may still be at work, and would be paid
twice. While the breaker is open nobody asks, and whoever would gets the error at once with the time until the next try.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from smallfirst.errors import ModelError, RateLimited, Unavailable
from smallfirst.models.remote.circuit_breaker import CircuitBreaker, Resting, RetryBudget
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.http import ConnectionBroken, Connections, Reply, ResponseTimeout, connect, error_text
from smallfirst.models.remote.responses import ResponseParser, after_attempts, retry_after_s

if TYPE_CHECKING:
    import httpx

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
BURST = 10
"""Retries that a quiet endpoint may get at once."""


class CircuitOpenError(Unavailable):
    """The endpoint has failed too often and is not asked for a while."""

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        """Seconds until it is asked again."""


class _Failed(NamedTuple):
    """A try that gave no answer."""

    error: ModelError
    again: bool
    """True if it is safe to try again."""
    asked_s: float | None = None
    """Seconds that the endpoint asks to wait."""


@dataclass
class _Lane:
    """What belongs to one event loop, since sockets cannot be shared between loops."""

    connections: Connections
    places: asyncio.Semaphore
    keeper: AsyncGenerator[None, None]


class EndpointClient:
    """The way to one endpoint; usable from several `asyncio.run` calls."""

    def __init__(
        self,
        config: EndpointConfig,
        replies: ResponseParser,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Not connected yet."""
        self._config, self._replies = config, replies
        self._transport, self._sleep = transport, sleep
        self._budget = RetryBudget(share=config.retry_share, burst=BURST)
        self._breaker = CircuitBreaker(config.breaker, clock=clock)
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}
        self._n_under_way = 0

    def check(self) -> None:
        """Nothing if the endpoint would be asked. Raises LeftAlone; costs nothing."""
        try:
            self._breaker.check()
        except Resting as resting:
            raise self._left_alone(resting) from None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[tuple[Connections, float]]:
        """This loop's connections and the request's share of the machine, once a place is free.

        The share is 1 / requests under way when this one starts: good enough to spread the cost
        of a machine over requests that it answers side by side.
        """
        self.check()  # nobody waits for a place that leads nowhere
        lane = self._lanes.get(asyncio.get_running_loop()) or await self._new_lane()
        async with lane.places:
            self._n_under_way += 1
            try:
                yield lane.connections, 1 / self._n_under_way
            finally:
                self._n_under_way -= 1

    @asynccontextmanager
    async def post(self, connections: Connections, path: str, body: dict[str, Any]) -> AsyncIterator[Reply]:
        """An accepted reply whose body is still unread. Raises ModelError, also for one that breaks off."""
        reply, phase = await self._accepted(connections, path, json.dumps(body).encode())
        try:
            yield reply
            self._breaker.succeeded(phase)
        except (ConnectionBroken, ResponseTimeout, TimeoutError) as error:
            self._breaker.failed(phase)
            raise self._replies.down(f"broke off its answer ({error_text(error)})") from None
        except Unavailable:  # it said so itself, or ended early
            self._breaker.failed(phase)
            raise
        except ModelError:
            self._breaker.succeeded(phase)
            raise
        finally:
            self._breaker.left(phase)
            await reply.aclose()

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Those of other loops end with them."""
        lane = self._lanes.pop(asyncio.get_running_loop(), None)
        if lane is not None:
            await lane.keeper.aclose()

    async def _new_lane(self) -> _Lane:
        for old in [known for known in list(self._lanes) if known.is_closed()]:
            self._lanes.pop(old, None)
        connections = connect(self._config, self._replies.key, self._transport)
        lane = _Lane(connections, asyncio.Semaphore(self._config.max_concurrency), _closed_with_its_loop(connections))
        self._lanes[asyncio.get_running_loop()] = lane
        await anext(lane.keeper)
        return lane

    async def _accepted(self, connections: Connections, path: str, body: bytes) -> tuple[Reply, int]:
        """An accepted reply and the breaker's phase. Tries again where that is safe and within the budget."""
        self._budget.asked()
        for tries in itertools.count(1):
            found = await self._once(connections, path, body, tries)
            if not isinstance(found, _Failed):
                return found
            wait_s = self._wait_s(found, tries)
            if wait_s is None:
                raise found.error
            await self._sleep(wait_s)
        raise AssertionError

    async def _once(self, connections: Connections, path: str, body: bytes, tries: int) -> tuple[Reply, int] | _Failed:
        """One try: an accepted reply and the breaker's phase, or what went wrong."""
        try:
            phase = self._breaker.enter()
        except Resting as resting:
            raise self._left_alone(resting) from None
        try:
            reply = await connections.post(path, body)
            if 200 <= reply.status < 300:
                self._breaker.alive(phase)
                return reply, phase
            failed = await self._refusal(reply, tries)
        except ResponseTimeout:
            error = self._replies.down(f"gave no answer within {self._config.timeout_s:g} s")
            failed = _Failed(error, again=False)
        except ConnectionBroken as broken:
            failed = _Failed(self._replies.down(f"{broken}{after_attempts(tries)}"), again=True)
        else:
            if not isinstance(failed.error, Unavailable):
                self._breaker.succeeded(phase)  # a refusal shows that it is there
                return failed
        finally:
            self._breaker.left(phase)
        self._breaker.failed(phase)
        return failed

    async def _refusal(self, reply: Reply, tries: int) -> _Failed:
        try:
            content = await reply.read()
        finally:
            await reply.aclose()
        error = self._replies.refusal(reply.status, content, tries)
        return _Failed(error, again=error.retryable, asked_s=retry_after_s(reply.header("retry-after")))

    def _wait_s(self, failed: _Failed, tries: int) -> float | None:
        """Seconds until the next try; None if there is none."""
        if not failed.again or tries > self._config.max_retries or self._breaker.rest_s > 0:
            return None
        growing_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1))
        wait_s = growing_s * random.uniform(0.5, 1) if failed.asked_s is None else failed.asked_s
        if wait_s > self._config.timeout_s:  # nobody would wait that long for an answer
            return None
        by_appointment = failed.asked_s is not None and isinstance(failed.error, RateLimited)
        return wait_s if by_appointment or self._budget.take() else None

    def _left_alone(self, resting: Resting) -> CircuitOpenError:
        down = self._replies.down(f"not asked for another {math.ceil(resting.wait_s)} s ({resting.why})")
        return CircuitOpenError(str(down.args[0]), retry_after_s=resting.wait_s, hint=down.hint)


async def _closed_with_its_loop(connections: Connections) -> AsyncGenerator[None, None]:
    """Closes the connections with their loop: `asyncio.run` closes all started generators at its end."""
    try:
        yield
    finally:
        await connections.aclose()
