"""When an upstream is asked again, and when it is left alone: a budget for retries and a circuit breaker.

A budget keeps retries from multiplying the load on an upstream that is down: over any stretch of time they are at most
a share of the requests, plus a small burst. A breaker spares both sides: after some failures nobody asks for a while,
then one request probes, and its end decides for all. Plain arithmetic over a clock that is handed in; each belongs to
one upstream and costs a microsecond or two a request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from smallfirst.records import Record


class CircuitBreakerConfig(Record):
    """When an upstream is left alone, and for how long."""

    max_consecutive_failures: Annotated[int, Field(ge=1)] = 5
    """So many failures one after the other open the breaker."""
    max_failure_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """So does this share of failures within the window, in (0, 1]."""
    min_requests: Annotated[int, Field(ge=1)] = 20
    """Requests in the window from which on the share counts."""
    window_s: Annotated[float, Field(gt=0)] = 30
    """Length of the window."""
    initial_open_s: Annotated[float, Field(gt=0)] = 1
    """Time that nobody asks after it opened; doubled with each probe that fails."""
    max_open_s: Annotated[float, Field(gt=0)] = 30
    """Longest such time."""


class Resting(Exception):
    """The upstream is left alone for `wait_s` more seconds, because of `why`."""

    def __init__(self, wait_s: float, why: str) -> None:
        super().__init__(why)
        self.wait_s, self.why = wait_s, why


class RetryBudget:
    """Retries that are left: each request adds a share of one, up to a burst."""

    def __init__(self, *, share: float = 0.1, burst: float = 10) -> None:
        """Full at first. Of n requests at most share * n + burst are retries, whatever happens."""
        self._share, self._burst, self._left = share, float(burst), float(burst)

    def asked(self) -> None:
        """A request that is no retry was made."""
        self._left = min(self._burst, self._left + self._share)

    def take(self) -> bool:
        """True if there may be one more retry, which is then spent."""
        # A share such as 0.1 is no binary fraction: ten of them may add up to a hair less than one.
        if self._left < 1 - 1e-9:
            return False
        self._left -= 1
        return True


class CircuitBreaker:
    """Closed: all may ask. Open: nobody may. After a rest one probe may, and closes it or opens it for longer.

    `enter` gives a number that is handed back with the result: what was begun before the breaker opened says nothing
    about the time after.
    """

    def __init__(self, rules: CircuitBreakerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Closed."""
        self._rules, self._clock = rules, clock
        self._phase = 0
        self._in_a_row = 0
        self._seconds: deque[tuple[int, int, int]] = deque()  # (second, requests, failures), the window
        self._rest_s = rules.initial_open_s
        self._open_until: float | None = None
        self._probing = False
        self._why = ""

    @property
    def rest_s(self) -> float:
        """Seconds until the upstream may be asked; 0 while it may."""
        if self._open_until is None:
            return 0.0
        return self._rest_s if self._probing else max(0.0, self._open_until - self._clock())

    def check(self) -> None:
        """Nothing if a request would be let through. Raises Resting."""
        if (wait_s := self.rest_s) > 0:
            raise Resting(wait_s, self._why)

    def enter(self) -> int:
        """The phase, to be handed back with the result. Raises Resting."""
        self.check()
        if self._open_until is not None:
            self._probing = True
            self._phase += 1
        return self._phase

    def alive(self, phase: int) -> None:
        """The upstream has begun to answer: enough for a probe, while the end of the answer may still fail."""
        if phase == self._phase and self._probing:
            self._open_until, self._probing = None, False
            self._in_a_row, self._rest_s = 0, self._rules.initial_open_s
            self._seconds.clear()

    def succeeded(self, phase: int) -> None:
        """It answered to the end, be it with a refusal."""
        if phase != self._phase:
            return
        self.alive(phase)
        self._in_a_row = 0
        self._count(failed=0)

    def failed(self, phase: int) -> None:
        """It was not there, broke off, took too long or said that it is broken."""
        if phase != self._phase:
            return
        if self._probing:
            self._rest_s = min(self._rules.max_open_s, 2 * self._rest_s)
            self._open()
            return
        self._in_a_row += 1
        n, failures = self._count(failed=1)
        if self._in_a_row >= self._rules.max_consecutive_failures:
            self._why = f"{self._in_a_row} failures in a row"
            self._open()
        elif n >= self._rules.min_requests and failures >= self._rules.max_failure_rate * n:
            self._why = f"{failures} of {n} requests failed within {self._rules.window_s:g} s"
            self._open()

    def left(self, phase: int) -> None:
        """Whoever asked went away before there was a result: a probe may be repeated at once."""
        if phase == self._phase and self._probing:
            self._probing, self._open_until = False, self._clock()

    def _open(self) -> None:
        self._phase += 1
        self._probing = False
        self._open_until = self._clock() + self._rest_s

    def _count(self, *, failed: int) -> tuple[int, int]:
        """Requests and failures in the window, this one included."""
        now = self._clock()
        while self._seconds and self._seconds[0][0] <= now - self._rules.window_s:
            self._seconds.popleft()
        n, failures = 0, 0
        if self._seconds and self._seconds[-1][0] == int(now):
            _, n, failures = self._seconds.pop()
        self._seconds.append((int(now), n + 1, failures + failed))
        return sum(n for _, n, _ in self._seconds), sum(failures for _, _, failures in self._seconds)
