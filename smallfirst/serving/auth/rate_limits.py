"""Rate limits of a key: requests a minute, tokens a minute, requests at once; counted in the memory of one process.

Tokens are reserved by an estimate before the model works and settled afterwards; an answer that took more puts the
bucket into debt, which refills before the next request passes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smallfirst.models.protocol import Completion
from smallfirst.serving.auth.keys import KeyPolicy
from smallfirst.serving.openai.errors import ApiError

_MINUTE_S = 60.0
_BUSY_RETRY_S = 1
"""Seconds a key that has too many requests under way is asked to wait: nobody knows when one ends."""


class TokenBucket:
    """A bucket that refills by `per_minute` units a minute, holds a minute's worth at most, and may be in debt."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level, self._at_s = float(per_minute), clock()

    @property
    def level(self) -> float:
        """Units in the bucket now; negative in debt."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at_s) * self.per_minute / _MINUTE_S)
        self._at_s = now
        return self._level

    def wait_s(self, units: float) -> float:
        """Return the seconds until `units` are there; more than a minute's worth waits for a full bucket only."""
        return max(0.0, (min(units, self.per_minute) - self.level) * _MINUTE_S / self.per_minute)

    def take(self, units: float) -> None:
        """Take `units` out, or put them back if negative."""
        self._level = min(self.per_minute, self.level - units)


class TokenReservation:
    """The tokens of one request: an estimate until its usage is known."""

    def __init__(self, bucket: TokenBucket | None, estimate: int) -> None:
        self._bucket, self._estimate = bucket, estimate
        self._used: int | None = None

    def add(self, completion: Completion) -> None:
        self._used = (self._used or 0) + completion.prompt_tokens + completion.completion_tokens

    def settle(self, n_tokens: int | None = None) -> None:
        """Replace the estimate with `n_tokens`, or those added, if there are any. A second call has no effect."""
        used = self._used if n_tokens is None else n_tokens
        if self._bucket is not None and used is not None:
            self._bucket.take(used - self._estimate)
        self._bucket = None


class Quota:
    """What is left of one key's limits."""

    def __init__(self, policy: KeyPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy = policy
        self._requests = TokenBucket(policy.requests_per_minute, clock) if policy.requests_per_minute else None
        self._tokens = TokenBucket(policy.tokens_per_minute, clock) if policy.tokens_per_minute else None
        self.n_in_flight = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request in flight. Raise ApiError 429; a refused request costs nothing."""
        most = self.policy.max_in_flight
        if most is not None and self.n_in_flight >= most:
            raise _slow_down(f"This key may have {most} requests under way at once.", _BUSY_RETRY_S, "requests")
        if self._requests is not None and (wait_s := self._requests.wait_s(1)):
            raise _slow_down(f"This key may send {self._requests.per_minute} requests a minute.", wait_s, "requests")
        if self._tokens is not None and (wait_s := self._tokens.wait_s(0)):
            # In debt: refused before the body is read.
            raise _slow_down(f"This key may use {self._tokens.per_minute} tokens a minute.", wait_s, "tokens")
        if self._requests is not None:
            self._requests.take(1)
        self.n_in_flight += 1
        try:
            yield
        finally:
            self.n_in_flight -= 1

    @contextmanager
    def tokens(self, estimate: int) -> Iterator[TokenReservation]:
        """Reserve `estimate` tokens, settled at the end. Raise ApiError 429 if they are not there."""
        bucket = self._tokens
        if bucket is not None:
            if wait_s := bucket.wait_s(estimate):
                raise _slow_down(f"This key may use {bucket.per_minute} tokens a minute.", wait_s, "tokens")
            bucket.take(estimate)
        reservation = TokenReservation(bucket, estimate)
        try:
            yield reservation
        finally:
            reservation.settle()

    def headers(self) -> dict[str, str]:
        """Return limits and what is left under OpenAI's header names; empty for a key without limits a minute."""
        found: dict[str, str] = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                found |= {
                    f"x-ratelimit-limit-{what}": str(bucket.per_minute),
                    f"x-ratelimit-remaining-{what}": str(max(0, math.floor(bucket.level))),
                    f"x-ratelimit-reset-{what}": _duration(bucket.wait_s(bucket.per_minute)),
                }
        return found


class Quotas:
    """The quotas of all keys by id; a key whose policy changed starts with a full quota."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_id: dict[str, Quota] = {}

    def of(self, id: str, policy: KeyPolicy) -> Quota:
        found = self._by_id.get(id)
        if found is None or (found.policy is not policy and found.policy != policy):
            # Only accepted keys come here, so the key store bounds their number.
            found = self._by_id[id] = Quota(policy, self._clock)
        return found


def _slow_down(rule: str, wait_s: float, what: str) -> ApiError:
    wait = max(1, math.ceil(wait_s))
    message = f"{rule} Try again in {wait} s."
    return ApiError(429, message, kind=what, code="rate_limit_exceeded", retry_after_s=wait)


def _duration(seconds: float) -> str:
    """Format as OpenAI does: `17ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
