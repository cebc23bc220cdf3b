"""What one key may take: requests a minute, tokens a minute, requests at once.

A token bucket holds a minute's worth and fills evenly, so a minute may be spent at once and then comes back bit by bit.
Tokens are taken by an estimate before the model works, and settled after: what the answer really took is paid, into
debt if need be, and the debt is worked off before the next request passes. A request that is estimated above a whole
minute's worth waits for a full bucket, it is never impossible. Counts are in the memory of one process: two servers
over one keyring give each key twice its limits, and a restart gives it a fresh minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smallfirst.models.protocol import Completion, Request
from smallfirst.serving.auth.key_store import KeyPolicy
from smallfirst.serving.openai.errors import ApiError

_MINUTE_S = 60.0
_BUSY_RETRY_S = 1
"""Seconds a key that has too many requests under way is asked to wait: nobody knows when one ends."""
_BYTES_A_TOKEN = 4


class TokenBucket:
    """So many units a minute; holds a minute's worth at most, and may be in debt."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        """A full bucket."""
        self.per_minute = per_minute
        self._clock = clock
        self._level, self._at_s = float(per_minute), clock()

    @property
    def level(self) -> float:
        """Units there now; negative in debt."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at_s) * self.per_minute / _MINUTE_S)
        self._at_s = now
        return self._level

    def wait_s(self, units: float) -> float:
        """Seconds until `units` are there, 0 if they are; more than a minute's worth waits for a full bucket."""
        return max(0.0, (min(units, self.per_minute) - self.level) * _MINUTE_S / self.per_minute)

    def take(self, units: float) -> None:
        """`units` are gone, or come back if negative."""
        self._level = min(self.per_minute, self.level - units)


class TokenReservation:
    """The tokens of one request: an estimate that was taken, until what it took is known."""

    def __init__(self, bucket: TokenBucket | None, estimate: int) -> None:
        self._bucket, self._estimate = bucket, estimate
        self._used: int | None = None

    def add(self, completion: Completion) -> None:
        """The answer's tokens go on the bill; several answers add up."""
        self._used = (self._used or 0) + completion.prompt_tokens + completion.completion_tokens

    def settle(self) -> None:
        """Pays what was used instead of the estimate, which stands where no answer came. Safe to call twice."""
        if self._bucket is not None and self._used is not None:
            self._bucket.take(self._used - self._estimate)
        self._bucket = None


class Quota:
    """What is left to one key."""

    def __init__(self, terms: KeyPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        """Untouched limits of `terms`."""
        self.terms = terms
        self._requests = TokenBucket(terms.requests_per_minute, clock) if terms.requests_per_minute else None
        self._tokens = TokenBucket(terms.tokens_per_minute, clock) if terms.tokens_per_minute else None
        self.n_in_flight = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Room for one request from now on. Raises WireError 429; a refused one costs nothing."""
        most = self.terms.max_in_flight
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
        """The bill of one request, settled at the end. Raises WireError 429 if the estimate is not there."""
        bucket = self._tokens
        if bucket is not None:
            if wait_s := bucket.wait_s(estimate):
                raise _slow_down(f"This key may use {bucket.per_minute} tokens a minute.", wait_s, "tokens")
            bucket.take(estimate)
        bill = TokenReservation(bucket, estimate)
        try:
            yield bill
        finally:
            bill.settle()

    def headers(self) -> dict[str, str]:
        """Limits and what is left, by OpenAI's names; empty for a key without limits a minute."""
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
    """What is left to each key, by its id; a key whose terms changed begins anew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nobody has asked yet."""
        self._clock = clock
        self._by_id: dict[str, Quota] = {}

    def of(self, id: str, terms: KeyPolicy) -> Quota:
        """The allowance of a key."""
        found = self._by_id.get(id)
        if found is None or (found.terms is not terms and found.terms != terms):
            # Only keys that were let in come here, so the keyring bounds the number.
            found = self._by_id[id] = Quota(terms, self._clock)
        return found


def estimated_tokens(*requests: Request) -> int:
    """About how many tokens requests will take: a quarter of the bytes of their messages, and the room they ask for."""
    n_bytes = sum(len(message.content.encode()) for request in requests for message in request.messages)
    return math.ceil(n_bytes / _BYTES_A_TOKEN) + sum(request.max_tokens for request in requests)


def _slow_down(rule: str, wait_s: float, what: str) -> ApiError:
    """OpenAI's refusal for a limit: type `requests` or `tokens`, code `rate_limit_exceeded`."""
    wait = max(1, math.ceil(wait_s))
    message = f"{rule} Try again in {wait} s."
    return ApiError(429, message, kind=what, code="rate_limit_exceeded", retry_after_s=wait)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `17ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
