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

from smallfirst.base.errors import AnswerLost, ModelError, RateLimited, Unavailable
from smallfirst.models.protocol import Attempt, Bill
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

FIRST_WAIT_S, MAX_WAIT_S = 0.5, 8.0
RETRY_SHARE, BURST = 0.1, 10
"""Retries of all requests together are at most this share of them, beside those that a quiet endpoint may get at once.
A wait that a 429 asks for does not count."""
MAX_FAILURES = 5
"""This many failures in a row open the circuit."""
FIRST_OPEN_S, MAX_OPEN_S = 1.0, 30.0
"""How long it stays open at first, and at most: doubled with each probe that fails."""


class CircuitOpenError(Unavailable):
    """The endpoint has failed too often and gets no requests for a while."""

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, reason="it has failed too often lately")
        self.retry_after_s = retry_after_s
        """Seconds until it gets requests again."""


class RetryBudget:
    """Retries that are left: each request adds RETRY_SHARE, up to BURST. It starts full."""

    def __init__(self) -> None:
        self._left = float(BURST)

    def add_request(self) -> None:
        self._left = min(BURST, self._left + RETRY_SHARE)

    def take(self) -> bool:
        """Spend one retry; return False if there is none left."""
        if self._left < 1 - 1e-9:  # ten times 0.1 may add up to a little less than one
            return False
        self._left -= 1
        return True


class CircuitBreaker:
    """Closed: every request is sent. Open: none is. Afterwards one probe is sent, and closes it or reopens it.

    `enter` returns a phase to pass back: a request sent before it opened says nothing about the time after.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase = self._n_failures = 0
        self._open_s = FIRST_OPEN_S
        self._open_until: float | None = None
        self._probing = False

    @property
    def remaining_open_s(self) -> float:
        """Seconds until a request may be sent; 0 if one may be sent now."""
        if self._open_until is None:
            return 0.0
        return self._open_s if self._probing else max(0.0, self._open_until - self._clock())

    def enter(self) -> int | None:
        """Return the phase of a request that may be sent now, or None while the circuit is open."""
        if self.remaining_open_s > 0:
            return None
        if self._open_until is not None:
            self._probing = True
            self._phase += 1
        return self._phase

    def record_response(self, phase: int) -> None:
        """Close the circuit after a probe: the endpoint has begun to answer. The rest of the answer may still fail."""
        if phase == self._phase and self._probing:
            self._open_until, self._probing = None, False
            self._n_failures, self._open_s = 0, FIRST_OPEN_S

    def record_success(self, phase: int) -> None:
        """Count a complete answer; a refusal is one too."""
        self.record_response(phase)
        if phase == self._phase:
            self._n_failures = 0

    def record_failure(self, phase: int) -> None:
        """Count an endpoint that was unreachable, broke off, took too long or reported an error of its own."""
        if phase != self._phase:
            return
        self._n_failures += 1
        if self._probing:
            self._open_s = min(MAX_OPEN_S, 2 * self._open_s)
        elif self._n_failures < MAX_FAILURES:
            return
        self._phase += 1
        self._probing = False
        self._open_until = self._clock() + self._open_s

    def cancel(self, phase: int) -> None:
        """Let the next request probe if this one was a probe and its caller left before there was a result."""
        if phase == self._phase and self._probing:
            self._probing, self._open_until = False, self._clock()


class _DidNothing(Exception):
    """A request that certainly was not worked on, so that it may be sent again."""

    def __init__(self, error: ModelError, retry_after_s: float | None = None) -> None:
        self.error, self.retry_after_s = error, retry_after_s


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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to nothing yet. `open_session` is called once in each event loop."""
        self._config, self._parser = config, parser
        self._open_session, self._sleep = open_session, sleep
        self._budget, self._breaker = RetryBudget(), CircuitBreaker(clock)
        self._loops: dict[asyncio.AbstractEventLoop, _LoopState] = {}
        self._n_in_flight = 0

    def check(self) -> None:
        """Raise CircuitOpenError while no request would be sent."""
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
    async def post(
        self, session: HttpSession, path: str, body: bytes, bill: Bill | None = None
    ) -> AsyncIterator[tuple[HttpResponse, Attempt]]:
        """Yield a successful response whose body is unread, and its attempt, whose cost the caller sets.

        `bill` gets all attempts.
        Raise ModelError, also if the body breaks off.
        """
        response, attempt, phase = await self._send(session, path, body, bill)
        record, outcome = self._breaker.cancel, "abandoned"  # unless one of these happens
        try:
            yield response, attempt
            record, outcome = self._breaker.record_success, "answered"
        except InvalidResponse as error:
            record, outcome = self._breaker.record_success, "invalid answer"
            raise self._parser.invalid(error_text(error)) from None
        except (ConnectionBroken, TimeoutError) as error:
            record, outcome = self._breaker.record_failure, "broken off"
            raise self._parser.lost(f"it broke off ({error_text(error)})", "the answer broke off") from None
        except Unavailable:  # it reported an error itself, or its stream ended early
            record, outcome = self._breaker.record_failure, "broken off"
            raise
        except ModelError:
            record, outcome = self._breaker.record_success, "invalid answer"
            raise
        finally:
            record(phase)
            attempt.end(outcome)
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

    async def _send(
        self, session: HttpSession, path: str, body: bytes, bill: Bill | None
    ) -> tuple[HttpResponse, Attempt, int]:
        self._budget.add_request()
        for n_tries in itertools.count(1):
            try:
                return await self._send_once(session, path, body, bill, n_tries)
            except _DidNothing as failure:
                wait_s = self._wait_s(failure, n_tries)
                if wait_s is None:
                    raise failure.error from None
            await self._sleep(wait_s)
        raise AssertionError

    async def _send_once(
        self, session: HttpSession, path: str, body: bytes, bill: Bill | None, n_tries: int
    ) -> tuple[HttpResponse, Attempt, int]:
        """Return the response, its attempt and its phase. Raise ModelError, or _DidNothing if it may be sent again."""
        phase = self._breaker.enter()
        if phase is None:
            raise self._circuit_open()
        attempt, timeout_s = Attempt(self._config.base_url, self._config.model), self._config.timeout_s
        if bill is not None:
            bill.attempts.append(attempt)
        try:
            async with asyncio.timeout(self._config.connect_timeout_s + timeout_s):  # headers may come byte by byte
                response = await session.post(path, body)
            if 200 <= response.status < 300:
                self._breaker.record_response(phase)
                return response, attempt, phase
            failure = await self._refused(response, attempt, phase, n_tries)
        except (ResponseTimeout, TimeoutError):
            self._breaker.record_failure(phase)
            attempt.end("timeout")
            what = f"no answer within {timeout_s:g} s"
            failure = self._parser.lost(what, what)
        except NotConnected as error:
            self._breaker.record_failure(phase)
            attempt.end("not connected", 0.0)
            failure = _DidNothing(self._parser.unavailable(f"{error}{after_attempts(n_tries)}"))
        except ConnectionBroken as broken:
            self._breaker.record_failure(phase)
            attempt.end("broken off")
            failure = self._parser.lost(str(broken), "the connection broke off")
        finally:
            self._breaker.cancel(phase)
        raise failure from None

    async def _refused(
        self, response: HttpResponse, attempt: Attempt, phase: int, n_tries: int
    ) -> ModelError | _DidNothing:
        """Return the error of a status other than 2xx."""
        start, retry_after = b"", response.header("retry-after")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.timeout_s):
                    start = await response.read_start(MAX_REFUSAL_BYTES)
        finally:
            await response.aclose()
        error = self._parser.refusal(response.status, start, n_tries, retry_after=retry_after)
        attempt.end(f"HTTP {response.status}", None if isinstance(error, AnswerLost) else 0.0)
        if isinstance(error, Unavailable):
            self._breaker.record_failure(phase)
        else:
            self._breaker.record_success(phase)  # an endpoint that refuses is reachable
        return _DidNothing(error, retry_after_s(retry_after)) if did_nothing(response.status, retry_after) else error

    def _wait_s(self, failure: _DidNothing, n_tries: int) -> float | None:
        """Return how long to wait before the request is sent again; None if it is not."""
        if n_tries > self._config.max_retries or self._breaker.remaining_open_s > 0:
            return None
        backoff_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (n_tries - 1)) * random.uniform(0.5, 1)
        wait_s = backoff_s if failure.retry_after_s is None else failure.retry_after_s
        if wait_s > self._config.timeout_s:  # no caller waits that long for an answer
            return None
        is_requested = failure.retry_after_s is not None and isinstance(failure.error, RateLimited)
        return wait_s if is_requested or self._budget.take() else None

    def _circuit_open(self) -> CircuitOpenError:
        wait_s = self._breaker.remaining_open_s
        error = self._parser.unavailable(f"no requests for another {math.ceil(wait_s)} s: it has failed too often")
        return CircuitOpenError(str(error.args[0]), retry_after_s=wait_s, hint=error.hint)


async def _closed_with_its_loop(session: HttpSession) -> AsyncGenerator[None, None]:
    """Close the session with its loop: `asyncio.run` closes all started generators at its end."""
    try:
        yield
    finally:
        await session.aclose()
