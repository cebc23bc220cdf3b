"""Requests to one endpoint: a bounded queue, retries, a circuit breaker, and the endpoint's errors in words.

A request is sent again only if no connection was made or the endpoint says that it did nothing (429, 425, 503 with
Retry-After): any other failure may have been paid. Every attempt is on the bill with its outcome and cost. Errors quote
the endpoint shortened and without the API key.
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
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from smallfirst.base.errors import AnswerLost, BadAnswer, ModelError, RateLimited, Unauthorised, Unavailable
from smallfirst.data.redaction import redact
from smallfirst.models.protocol import Attempt, Bill
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.http import (
    CONNECT_TIMEOUT_S,
    ConnectionBroken,
    HttpResponse,
    HttpSession,
    InvalidResponse,
    NotConnected,
    ResponseTimeout,
    error_text,
)

FIRST_WAIT_S, MAX_WAIT_S = 0.5, 8.0
MAX_FAILURES = 5
"""This many failures in a row open the circuit."""
FIRST_OPEN_S, MAX_OPEN_S = 1.0, 30.0
"""How long it stays open at first, and at most: doubled with each probe that fails."""
SHOWN_CHARACTERS = 300
MAX_REFUSAL_BYTES = 64 * 1024
"""So much of an error's body is read."""


class CircuitOpenError(Unavailable):
    """The endpoint has failed too often and gets no requests for a while."""

    def __init__(self, message: str, *, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, reason="it has failed too often lately")
        self.retry_after_s = retry_after_s
        """Seconds until it gets requests again."""


class CircuitBreaker:
    """Closed: every request is sent. Open: none is; then one probe is, and its answer closes it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, max_failures: int = MAX_FAILURES) -> None:
        self._clock, self._max_failures, self._n_failures, self._probing = clock, max_failures, 0, False
        self._open_s, self._open_until = FIRST_OPEN_S, -math.inf

    @property
    def remaining_open_s(self) -> float:
        """Seconds until a request may be sent; 0 if one may be sent now."""
        return max(0.0, self._open_until - self._clock())

    def enter(self) -> bool:
        """Return whether a request may be sent now."""
        if self.remaining_open_s > 0:
            return False
        if self._n_failures >= self._max_failures:  # one probe; if its end is not told, another follows
            self._probing, self._open_until = True, self._clock() + self._open_s
        return True

    def record(self, *, answered: bool) -> None:
        """Count a complete answer (a refusal is one too), or an endpoint that was unreachable, broke off or failed."""
        if answered:
            self._n_failures, self._probing = 0, False
            self._open_s, self._open_until = FIRST_OPEN_S, -math.inf
            return
        self._n_failures += 1
        if self._probing:
            self._open_s = min(MAX_OPEN_S, 2 * self._open_s)
        elif self._n_failures != self._max_failures:  # requests that were sent before it opened say nothing new
            return
        self._probing, self._open_until = False, self._clock() + self._open_s


class EndpointErrors:
    """What went wrong at one endpoint, in words."""

    def __init__(self, config: EndpointConfig, key: str) -> None:
        self.url, self._config, self._key = f"{config.base_url}/chat/completions", config, key

    def refusal(self, status: int, start: bytes, n_tries: int, *, retry_after: str = "") -> ModelError:
        """Return the error of a status other than 2xx; `start` is the beginning of its body."""
        quote, tries = self.quoted(start), _after(n_tries)
        if status in (401, 403):
            return Unauthorised(
                f"{self.url} refused the key (HTTP {status}): {quote}",
                hint=f"put a key that may use {self._config.model} into the variable {self._config.api_key_env}",
            )
        if status == 429:
            return RateLimited(
                f"{self.url} asks to slow down (HTTP 429){tries}: {quote}",
                hint="wait a while, or lower max_concurrency",
            )
        if did_nothing(status, retry_after):
            return self.unavailable(f"HTTP {status}{tries}: {quote}")
        if status == 408 or status >= 500:
            return self.lost(f"HTTP {status}{tries}: {quote}", f"status {status}")
        if 300 <= status < 400:
            quote = "a redirect, which is not followed because the key would go along"
        return BadAnswer(
            f"{self.url} refused the request (HTTP {status}): {quote}",
            hint=f'check base_url, and that the endpoint knows the model "{self._config.model}"',
            reason=f"status {status}",
        )

    def unavailable(self, what: str) -> Unavailable:
        hint = f"see if it is up: curl {self._config.base_url}/models"
        return Unavailable(f"{self.url} is unavailable: {what}", hint=hint)

    def circuit_open(self, wait_s: float) -> CircuitOpenError:
        error = self.unavailable(f"no requests for another {math.ceil(wait_s)} s: it has failed too often")
        return CircuitOpenError(str(error.args[0]), retry_after_s=wait_s, hint=error.hint)

    def lost(self, what: str, reason: str) -> AnswerLost:
        return AnswerLost(
            f"{self.url} took the request and gave no answer: {what}",
            hint="it may be paid, so it is not sent again; see the endpoint's own records",
            reason=reason,
        )

    def invalid(self, reason: str) -> BadAnswer:
        return BadAnswer(f"{self.url} answered with something invalid: {reason}", reason=reason)

    def no_completion(self, content: bytes | str, reason: str) -> BadAnswer:
        return BadAnswer(
            f"{self.url} answered with something that is not a chat completion ({reason}): {self.quoted(content)}",
            hint="check that base_url ends where the API begins, usually /v1",
            reason=reason,
        )

    def quoted(self, content: bytes | str) -> str:
        start = content[: 100 * SHOWN_CHARACTERS]
        text = " ".join((start if isinstance(start, str) else start.decode(errors="replace")).split())
        if self._key:
            text = text.replace(self._key, "•••")
        return redact(text).text[:SHOWN_CHARACTERS] or "(nothing)"


class _DidNothing(Exception):
    """A request that certainly was not worked on, so that it may be sent again."""

    def __init__(self, error: ModelError, wait_s: float | None = None) -> None:
        self.error, self.wait_s = error, wait_s


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
        key: str,
        *,
        unix_socket: Path | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to nothing yet; each event loop has a session of its own."""
        self.errors = EndpointErrors(config, key)
        self._config, self._key, self._unix_socket, self._sleep = config, key, unix_socket, sleep
        self._breaker = CircuitBreaker(clock)
        self._loops: dict[asyncio.AbstractEventLoop, _LoopState] = {}
        self._n_in_flight = 0

    def check(self) -> None:
        """Raise CircuitOpenError while no request would be sent."""
        if (wait_s := self._breaker.remaining_open_s) > 0:
            raise self.errors.circuit_open(wait_s)

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

        `bill` gets all attempts. Raise ModelError, also if the body breaks off.
        """
        response, attempt = await self._send(session, path, body, bill)
        outcome, answered = "abandoned", None  # unless one of these happens
        try:
            yield response, attempt
            outcome, answered = "answered", True
        except InvalidResponse as error:
            outcome, answered = "invalid answer", True
            raise self.errors.invalid(error_text(error)) from None
        except (ConnectionBroken, TimeoutError) as error:
            outcome, answered = "broken off", False
            raise self.errors.lost(f"it broke off ({error_text(error)})", "the answer broke off") from None
        except ModelError as error:
            is_up = not isinstance(error, Unavailable)  # else it reported an error itself, or its stream ended early
            outcome, answered = "invalid answer" if is_up else "broken off", is_up
            raise
        finally:
            if answered is not None:
                self._breaker.record(answered=answered)
            attempt.end(outcome)
            await response.aclose()

    async def aclose(self) -> None:
        state = self._loops.pop(asyncio.get_running_loop(), None)
        if state is not None:
            await state.closer.aclose()

    async def _new_loop_state(self) -> _LoopState:
        for old in [known for known in list(self._loops) if known.is_closed()]:
            self._loops.pop(old, None)
        session = HttpSession(
            self._config.base_url,
            key=self._key,
            timeout_s=self._config.timeout_s,
            max_connections=self._config.max_concurrency,
            unix_socket=self._unix_socket,
        )
        state = _LoopState(session, asyncio.Semaphore(self._config.max_concurrency), _closed_with_its_loop(session))
        self._loops[asyncio.get_running_loop()] = state
        await anext(state.closer)
        return state

    async def _send(
        self, session: HttpSession, path: str, body: bytes, bill: Bill | None
    ) -> tuple[HttpResponse, Attempt]:
        """Return a response of status 2xx and its attempt. Raise ModelError."""
        for n_tries in itertools.count(1):
            self.check()
            self._breaker.enter()
            attempt = Attempt(self._config.base_url, self._config.model)
            if bill is not None:
                bill.attempts.append(attempt)
            try:
                return await self._send_once(session, path, body, attempt, n_tries), attempt
            except _DidNothing as failure:
                wait_s = failure.wait_s
                if wait_s is None:
                    wait_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (n_tries - 1)) * random.uniform(0.5, 1)
                # No caller waits longer for an answer than the timeout.
                is_last = n_tries > self._config.max_retries or wait_s > self._config.timeout_s
                if is_last or self._breaker.remaining_open_s > 0:
                    raise failure.error from None
            await self._sleep(wait_s)
        raise AssertionError

    async def _send_once(
        self, session: HttpSession, path: str, body: bytes, attempt: Attempt, n_tries: int
    ) -> HttpResponse:
        """Return a response of status 2xx. Raise ModelError, or _DidNothing if the request may be sent again."""
        timeout_s = self._config.timeout_s
        failure: ModelError | _DidNothing
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S + timeout_s):  # headers may come byte by byte
                response = await session.post(path, body)
            if 200 <= response.status < 300:
                return response
            raise await self._refusal(response, attempt, n_tries)
        except (ResponseTimeout, TimeoutError):
            what = f"no answer within {timeout_s:g} s"
            outcome, cost_usd, failure = "timeout", None, self.errors.lost(what, what)
        except NotConnected as error:
            unavailable = self.errors.unavailable(f"{error}{_after(n_tries)}")
            outcome, cost_usd, failure = "not connected", 0.0, _DidNothing(unavailable)
        except ConnectionBroken as broken:
            lost = self.errors.lost(str(broken), "the connection broke off")
            outcome, cost_usd, failure = "broken off", None, lost
        self._breaker.record(answered=False)
        attempt.end(outcome, cost_usd)
        raise failure from None

    async def _refusal(self, response: HttpResponse, attempt: Attempt, n_tries: int) -> ModelError | _DidNothing:
        """Return the error of a status other than 2xx."""
        start, retry_after = b"", response.header("retry-after")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.timeout_s):
                    start = await response.read_start(MAX_REFUSAL_BYTES)
        finally:
            await response.aclose()
        error = self.errors.refusal(response.status, start, n_tries, retry_after=retry_after)
        attempt.end(f"HTTP {response.status}", None if isinstance(error, AnswerLost) else 0.0)
        self._breaker.record(answered=not isinstance(error, Unavailable))  # who refuses is reachable
        return _DidNothing(error, retry_after_s(retry_after)) if did_nothing(response.status, retry_after) else error


async def _closed_with_its_loop(session: HttpSession) -> AsyncGenerator[None, None]:
    """Close the session with its loop: `asyncio.run` closes all started generators at its end."""
    try:
        yield
    finally:
        await session.aclose()


def did_nothing(status: int, retry_after: str) -> bool:
    """Return whether a status says that the request was not worked on, so that it may be sent again.

    429 and 425 always; 503 only with Retry-After, since gateways send it also for work that has begun.
    """
    return status in (425, 429) or (status == 503 and retry_after_s(retry_after) is not None)


def retry_after_s(value: str) -> float | None:
    """Return the seconds of a Retry-After header, number or date; None if it is missing or malformed."""
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _after(n_tries: int) -> str:
    return f" after {n_tries} tries" if n_tries > 1 else ""
