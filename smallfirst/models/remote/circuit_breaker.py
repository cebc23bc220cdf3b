"""When to retry a request to an endpoint, and when to send it none: a retry budget and a circuit breaker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from smallfirst.records import Record


class CircuitBreakerConfig(Record):
    """When the circuit opens, and for how long."""

    max_consecutive_failures: Annotated[int, Field(ge=1)] = 5
    """This many failures in a row open the circuit."""
    max_failure_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """This share of failures within the window opens it too, in (0, 1]."""
    min_requests: Annotated[int, Field(ge=1)] = 20
    """Requests in the window before the rate counts."""
    window_s: Annotated[float, Field(gt=0)] = 30
    """Length of the window."""
    initial_open_s: Annotated[float, Field(gt=0)] = 1
    """How long it stays open at first; doubled with each probe that fails."""
    max_open_s: Annotated[float, Field(gt=0)] = 30
    """How long it stays open at most."""


class RetryBudget:
    """Retries that are left: each request adds a share of one, up to a burst."""

    def __init__(self, *, share: float = 0.1, burst: float = 10) -> None:
        """Start full. Of n requests at most share * n + burst are retries, whatever happens."""
        self._share, self._burst, self._left = share, float(burst), float(burst)

    def add_request(self) -> None:
        self._left = min(self._burst, self._left + self._share)

    def take(self) -> bool:
        """Spend one retry; return False if there is none left."""
        # A share such as 0.1 is not a binary fraction: ten of them may add up to a little less than one.
        if self._left < 1 - 1e-9:
            return False
        self._left -= 1
        return True


class CircuitBreaker:
    """Closed: every request is sent. Open: none is. Afterwards one probe is sent, and closes it or reopens it.

    `enter` returns a phase to pass back: a request sent before it opened says nothing about the time after.
    """

    def __init__(self, config: CircuitBreakerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._phase = 0
        self._consecutive_failures = 0
        self._seconds: deque[tuple[int, int, int]] = deque()  # (second, requests, failures), the window
        self._open_s = config.initial_open_s
        self._open_until: float | None = None
        self._probing = False
        self.reason = ""
        """Why the circuit opened last."""

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
            self._consecutive_failures, self._open_s = 0, self._config.initial_open_s
            self._seconds.clear()

    def record_success(self, phase: int) -> None:
        """Count a complete answer; a refusal is one too."""
        if phase != self._phase:
            return
        self.record_response(phase)
        self._consecutive_failures = 0
        self._count(failures=0)

    def record_failure(self, phase: int) -> None:
        """Count an endpoint that was unreachable, broke off, took too long or reported an error of its own."""
        if phase != self._phase:
            return
        if self._probing:
            self._open_s = min(self._config.max_open_s, 2 * self._open_s)
            self._open()
            return
        self._consecutive_failures += 1
        n, failures = self._count(failures=1)
        if self._consecutive_failures >= self._config.max_consecutive_failures:
            self.reason = f"{self._consecutive_failures} failures in a row"
            self._open()
        elif n >= self._config.min_requests and failures >= self._config.max_failure_rate * n:
            self.reason = f"{failures} of {n} requests failed within {self._config.window_s:g} s"
            self._open()

    def cancel(self, phase: int) -> None:
        """Let the next request probe if this one was a probe and its caller left before there was a result."""
        if phase == self._phase and self._probing:
            self._probing, self._open_until = False, self._clock()

    def _open(self) -> None:
        self._phase += 1
        self._probing = False
        self._open_until = self._clock() + self._open_s

    def _count(self, *, failures: int) -> tuple[int, int]:
        now = self._clock()
        while self._seconds and self._seconds[0][0] <= now - self._config.window_s:
            self._seconds.popleft()
        n, failed = 0, 0
        if self._seconds and self._seconds[-1][0] == int(now):
            _, n, failed = self._seconds.pop()
        self._seconds.append((int(now), n + 1, failed + failures))
        return sum(n for _, n, _ in self._seconds), sum(failed for _, _, failed in self._seconds)
