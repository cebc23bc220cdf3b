"""Requests to one endpoint: a bounded queue, retries within a budget, and a circuit breaker.

A request is sent again only if no connection was made or the endpoint says that it did nothing (429, 425, 503 with
Retry-After): any other failure may have been paid. Every attempt is noted with its outcome and cost.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from smallfirst.errors import AnswerLost, ModelError, RateLimited, Unavailable
from smallfirst.models.remote.circuit_breaker import CircuitBreaker, RetryBudget
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.http import (
    ConnectionBroken,
    HttpResponse,
    HttpSession,
    InvalidResponse,
    NotConnected,
    ResponseTimeout,
    error_text,
)
from smallfirst.models.remote.responses import (
    MAX_REFUSAL_BYTES,
    ResponseParser,
    after_attempts,
    did_nothing,
    retry_after_s,
)
from smallfirst.models.usage import Attempt

FIRST_WAIT_S, MAX_WAIT_S = 0.5, 8.0
BURST = 10
"""Retries that a quiet endpoint may get at once."""


class CircuitOpenError(Unavailable):
    """The endpoint has failed too often and gets no requests for a while."""

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, reason="it has failed too often lately")
        self.retry_after_s = retry_after_s
        """Seconds until it gets requests again."""


class _Failure(NamedTuple):
    error: ModelError
    retryable: bool
    retry_after_s: float | None = None


@dataclass
class _LoopState:
    """The connections and slots of one event loop; loops cannot share sockets."""

    session: HttpSession
    slots: asyncio.Semaphore
    closer: AsyncGenerator[None, None]


class EndpointClient:
    """Sends requests to one endpoint; usable from several `asyncio.run` calls."""

    def __init__(
        self,
        config: EndpointConfig,
        parser: ResponseParser,
        *,
        open_session: Callable[[], HttpSession],
        new_attempt: Callable[[], Attempt],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to nothing yet. `open_session` is called once in each event loop."""
        self._config, self._parser = config, parser
        self._open_session, self._new_attempt, self._sleep = open_session, new_attempt, sleep
        self._budget = RetryBudget(share=config.retry_share, burst=BURST)
        self._breaker = CircuitBreaker(config.breaker, clock=clock)
        self._loops: dict[asyncio.AbstractEventLoop, _LoopState] = {}
        self._n_in_flight = 0

    def check(self) -> None:
        if self._breaker.remaining_open_s > 0:
            raise self._circuit_open()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[tuple[HttpSession, float]]:
        """Wait for a free slot; yield this loop's session and 1 / requests in flight as the share of the machine."""
        self.check()  # or a request would wait for a slot that leads nowhere
        state = self._loops.get(asyncio.get_running_loop()) or await self._new_loop_state()
        async with state.slots:
            self._n_in_flight += 1
            try:
                yield state.session, 1 / self._n_in_flight
            finally:
                self._n_in_flight -= 1

    @asynccontextmanager
    async def post(self, session: HttpSession, path: str, body: bytes) -> AsyncIterator[tuple[HttpResponse, Attempt]]:
        """Yield a successful response whose body is unread, and its attempt, whose cost the caller sets.

        Raise ModelError, also if the body breaks off.
        """
        response, attempt, phase = await self._send(session, path, body)
        try:
            yield response, attempt
            self._breaker.record_success(phase)
            attempt.end("answered")
        except InvalidResponse as error:
            self._breaker.record_success(phase)
            attempt.end("invalid answer")
            raise self._parser.invalid(error_text(error)) from None
        except (ConnectionBroken, TimeoutError) as error:
            self._breaker.record_failure(phase)
            attempt.end("broken off")
            raise self._parser.lost(f"it broke off ({error_text(error)})", "the answer broke off") from None
        except Unavailable:  # it reported an error itself, or its stream ended early
            self._breaker.record_failure(phase)
            attempt.end("broken off")
            raise
        except ModelError:
            self._breaker.record_success(phase)
            attempt.end("invalid answer")
            raise
        finally:
            self._breaker.cancel(phase)
            if attempt.outcome == "abandoned":
                attempt.end("abandoned")
            await response.aclose()

    async def aclose(self) -> None:
        state = self._loops.pop(asyncio.get_running_loop(), None)
        if state is not None:
            await state.closer.aclose()

    async def _new_loop_state(self) -> _LoopState:
        for old in [known for known in list(self._loops) if known.is_closed()]:
            self._loops.pop(old, None)
        session = self._open_session()
        state = _LoopState(session, asyncio.Semaphore(self._config.max_concurrency), _closed_with_its_loop(session))
        self._loops[asyncio.get_running_loop()] = state
        await anext(state.closer)
        return state

    async def _send(self, session: HttpSession, path: str, body: bytes) -> tuple[HttpResponse, Attempt, int]:
        self._budget.add_request()
        for attempts in itertools.count(1):
            result = await self._send_once(session, path, body, attempts)
            if not isinstance(result, _Failure):
                return result
            wait_s = self._wait_s(result, attempts)
            if wait_s is None:
                raise result.error
            await self._sleep(wait_s)
        raise AssertionError

    async def _send_once(
        self, session: HttpSession, path: str, body: bytes, attempts: int
    ) -> tuple[HttpResponse, Attempt, int] | _Failure:
        phase = self._breaker.enter()
        if phase is None:
            raise self._circuit_open()
        attempt, timeout_s = self._new_attempt(), self._config.timeout_s
        try:
            async with asyncio.timeout(self._config.connect_timeout_s + timeout_s):  # headers may come byte by byte
                response = await session.post(path, body)
            if 200 <= response.status < 300:
                self._breaker.record_response(phase)
                return response, attempt, phase
            failure = await self._refused(response, attempt, attempts)
        except (ResponseTimeout, TimeoutError):
            attempt.end("timeout")
            what = f"no answer within {timeout_s:g} s"
            failure = _Failure(self._parser.lost(what, what), retryable=False)
        except NotConnected as error:
            attempt.end("not connected", 0.0)
            failure = _Failure(self._parser.unavailable(f"{error}{after_attempts(attempts)}"), retryable=True)
        except ConnectionBroken as broken:
            attempt.end("broken off")
            failure = _Failure(self._parser.lost(str(broken), "the connection broke off"), retryable=False)
        else:
            if not isinstance(failure.error, Unavailable):
                self._breaker.record_success(phase)  # an endpoint that refuses is reachable
                return failure
        finally:
            self._breaker.cancel(phase)
        self._breaker.record_failure(phase)
        return failure

    async def _refused(self, response: HttpResponse, attempt: Attempt, attempts: int) -> _Failure:
        start, retry_after = b"", response.header("retry-after")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.timeout_s):
                    start = await response.read_start(MAX_REFUSAL_BYTES)
        finally:
            await response.aclose()
        error = self._parser.refusal(response.status, start, attempts, retry_after=retry_after)
        attempt.end(f"HTTP {response.status}", None if isinstance(error, AnswerLost) else 0.0)
        return _Failure(error, did_nothing(response.status, retry_after), retry_after_s(retry_after))

    def _wait_s(self, failure: _Failure, attempts: int) -> float | None:
        if not failure.retryable or attempts > self._config.max_retries or self._breaker.remaining_open_s > 0:
            return None
        backoff_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (attempts - 1)) * random.uniform(0.5, 1)
        wait_s = backoff_s if failure.retry_after_s is None else failure.retry_after_s
        if wait_s > self._config.timeout_s:  # no caller waits that long for an answer
            return None
        is_requested = failure.retry_after_s is not None and isinstance(failure.error, RateLimited)
        return wait_s if is_requested or self._budget.take() else None

    def _circuit_open(self) -> CircuitOpenError:
        wait_s = self._breaker.remaining_open_s
        error = self._parser.unavailable(f"no requests for another {math.ceil(wait_s)} s ({self._breaker.reason})")
        return CircuitOpenError(str(error.args[0]), retry_after_s=wait_s, hint=error.hint)


async def _closed_with_its_loop(session: HttpSession) -> AsyncGenerator[None, None]:
    """Close the session with its loop: `asyncio.run` closes all started generators at its end."""
    try:
        yield
    finally:
        await session.aclose()
