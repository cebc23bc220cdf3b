"""Rate limits of a key: requests a minute, tokens a minute, requests at once; over all processes of one ledger.

What is left of a limit is one value in the database. A process draws a block from it, about a second's worth, spends it
in its memory and gives back what it does not use, so that all together never pass more than the limit; what lies unused
in blocks is refused to others for two seconds at most. Places for requests at once are lent in the same way, and come
back after LEASE_S from a process that was killed. Tokens are reserved by an estimate before the model works and settled
afterwards; an answer that took more puts the bucket into debt, which refills before the next request passes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from smallfirst.errors import SmallfirstError
from smallfirst.models.protocol import Completion
from smallfirst.serving.auth.keys import KeyPolicy
from smallfirst.serving.ledger.shared_state import MemoryState, SharedState
from smallfirst.serving.openai.errors import ApiError

_log = logging.getLogger("smallfirst.serving")
_MINUTE_S = 60.0
_BUSY_RETRY_S = 1
"""Seconds a key that has too many requests under way is asked to wait: nobody knows when one ends."""
TICK_S = 1.0
"""Seconds after which what is not used is given back, and the worth of a block."""
LEASE_S = 15.0
"""Seconds for which places are lent; while they are held they are lent anew."""


def exchange(
    bucket: Any, now: float, *, per_minute: int, back: float, need: float, want: float
) -> tuple[dict[str, float], tuple[float, float]]:
    """Put `back` units into a bucket (a debt: negative) and take `want`, or what is there if that is at least `need`.

    It refills by `per_minute` units a minute and holds a minute's worth; a `need` of more waits for a full bucket and
    leaves a debt. Return it with the units taken, 0 if there is less than `need`, and its level.
    """
    if bucket is None or bucket["per_minute"] != per_minute:  # a new limit starts full
        bucket = {"level": per_minute, "at": now}
    level = bucket["level"] + max(0.0, now - bucket["at"]) * per_minute / _MINUTE_S
    level = min(float(per_minute), min(float(per_minute), level) + back)
    taken = 0.0
    if need and level >= min(need, per_minute) - 1e-9:
        taken = max(need, min(want, math.floor(level)))
    level -= taken
    return {"level": level, "at": max(now, bucket["at"]), "per_minute": per_minute}, (taken, level)


def lend(places: Any, now: float, *, most: int, holder: str, n: int) -> tuple[dict[str, tuple[int, float]], bool]:
    """Lend a holder `n` places, instead of those that it has, if others leave so many of `most`; return whether."""
    others = {name: held for name, held in (places or {}).items() if name != holder and held[1] > now}
    fits = n <= most - sum(held[0] for held in others.values())
    mine = {holder: (n, now + LEASE_S)} if n else {}
    return (others | mine if fits else places or {}), fits


class LeasedBucket:
    """One limit a minute, as this process may use it."""

    def __init__(
        self, name: str, per_minute: int, state: SharedState | MemoryState, clock: Callable[[], float]
    ) -> None:
        self.per_minute = per_minute
        self._name, self._state, self._clock = name, state, clock
        self._lock = asyncio.Lock()
        self._block = self._owed = 0.0
        """Units that were drawn and not spent · that are to be put back; negative: a debt."""
        self._level, self._at_s = float(per_minute), clock()
        """What the bucket was known to hold at a time."""
        self._idle = False

    @property
    def level(self) -> float:
        """Units left as far as is known here; negative in debt."""
        refilled = self._level + (self._clock() - self._at_s) * self.per_minute / _MINUTE_S
        return min(self.per_minute, min(self.per_minute, refilled) + self._block + self._owed)

    def wait_s(self, units: float) -> float:
        """Return the seconds until `units` are there; more than a minute's worth waits for a full bucket only."""
        return max(0.0, (min(units, self.per_minute) - self.level) * _MINUTE_S / self.per_minute)

    async def take(self, units: float) -> float:
        """Take `units` and return 0, or take nothing and return the seconds to wait. Raise LedgerAway."""
        self._idle = False
        if not self._has(units):
            async with self._lock:
                if not self._has(units) and not await self._draw(units):
                    return max(1e-9, self.wait_s(units))
                self._block -= units
                return 0.0
        self._block -= units
        return 0.0

    def _has(self, units: float) -> bool:
        return self._block >= units and self._owed >= 0

    def settle(self, units: float) -> None:
        """Take `units` whether or not they are there, or put them back if negative."""
        self._owed -= units

    async def tick(self) -> None:
        """Give back what was not used since the last call, and what was too much of estimates; pay a debt."""
        if self._owed or (self._block and self._idle):
            async with self._lock:
                await self._draw(0)
        self._idle = True

    @property
    def in_use(self) -> bool:
        return bool(self._block or self._owed)

    @property
    def _worth(self) -> float:
        return max(1.0, self.per_minute * TICK_S / _MINUTE_S)

    async def _draw(self, units: float) -> bool:
        back, self._block, self._owed = self._block + self._owed, 0.0, 0.0
        change = partial(exchange, per_minute=self.per_minute, back=back, need=units, want=max(units, self._worth))
        try:
            taken, level = await self._state.update(self._name, change)
        except SmallfirstError:
            self._owed += back
            raise
        self._level, self._at_s = level, self._clock()
        self._block += taken
        return taken > 0


class TokenReservation:
    """The tokens of one request: an estimate until its usage is known."""

    def __init__(self, bucket: LeasedBucket | None, estimate: int) -> None:
        self._bucket, self._estimate = bucket, estimate
        self._used: int | None = None

    def add(self, completion: Completion) -> None:
        self._used = (self._used or 0) + completion.prompt_tokens + completion.completion_tokens

    def settle(self, n_tokens: int | None = None) -> None:
        """Replace the estimate with `n_tokens`, or those added, if there are any. A second call has no effect."""
        used = self._used if n_tokens is None else n_tokens
        if self._bucket is not None and used is not None:
            self._bucket.settle(used - self._estimate)
        self._bucket = None


class Quota:
    """What is left of one key's limits."""

    def __init__(
        self,
        policy: KeyPolicy,
        clock: Callable[[], float] = time.monotonic,
        *,
        state: SharedState | MemoryState | None = None,
        id: str = "",
        process: str = "",
    ) -> None:
        """`state` has the limits of the key `id` for all processes, this one's name being `process`."""
        self.policy = policy
        self._state, self._places, self._process = state or MemoryState(clock), f"places/{id}", process
        made = [
            LeasedBucket(f"{what}/{id}", n, self._state, clock) if n else None
            for what, n in (("requests", policy.requests_per_minute), ("tokens", policy.tokens_per_minute))
        ]
        self._requests, self._tokens = made
        self.n_in_flight = self._n_lent = 0
        self._lent_until_s, self._clock = 0.0, clock
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Count one request in flight. Raise ApiError 429, a refused request costs nothing, or LedgerAway."""
        if self._tokens is not None and (wait_s := self._tokens.wait_s(0)):
            # In debt: refused before the body is read.
            raise _slow_down(f"This key may use {self._tokens.per_minute} tokens a minute.", wait_s, "tokens")
        self.n_in_flight += 1
        try:
            most = self.policy.max_in_flight
            if most is not None and not await self._has_place():
                raise _slow_down(f"This key may have {most} requests under way at once.", _BUSY_RETRY_S, "requests")
            if self._requests is not None and (wait_s := await self._requests.take(1)):
                rule = f"This key may send {self._requests.per_minute} requests a minute."
                raise _slow_down(rule, wait_s, "requests")
            yield
        finally:
            self.n_in_flight -= 1

    @asynccontextmanager
    async def tokens(self, estimate: int) -> AsyncIterator[TokenReservation]:
        """Reserve `estimate` tokens, settled at the end. Raise ApiError 429 if they are not there."""
        bucket = self._tokens
        if bucket is not None and (wait_s := await bucket.take(estimate)):
            raise _slow_down(f"This key may use {bucket.per_minute} tokens a minute.", wait_s, "tokens")
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
                    f"x-ratelimit-remaining-{what}": str(max(0, math.floor(bucket.level + 1e-9))),
                    f"x-ratelimit-reset-{what}": _duration(bucket.wait_s(bucket.per_minute)),
                }
        return found

    async def tick(self) -> bool:
        """Give back what is not used and keep what is; return True while there is something to keep."""
        buckets = [bucket for bucket in (self._requests, self._tokens) if bucket is not None]
        for bucket in buckets:
            await bucket.tick()
        due = self._n_lent and self._clock() > self._lent_until_s - LEASE_S * 2 / 3
        if self._n_lent > self.n_in_flight or due:
            async with self._lock:
                await self._lend(self.n_in_flight)
        return bool(self._n_lent) or any(bucket.in_use for bucket in buckets)

    async def _has_place(self) -> bool:
        """Return True if the requests in flight, this one included, have places."""
        if self.n_in_flight <= self._n_lent and self._clock() < self._lent_until_s:
            return True
        async with self._lock:
            fresh = self.n_in_flight <= self._n_lent and self._clock() < self._lent_until_s
            return fresh or await self._lend(self.n_in_flight)

    async def _lend(self, n: int) -> bool:
        until_s, most = self._clock() + LEASE_S, self.policy.max_in_flight or 0
        if fits := await self._state.update(self._places, partial(lend, most=most, holder=self._process, n=n)):
            self._n_lent, self._lent_until_s = n, until_s
        return fits


class Quotas:
    """The quotas of all keys by id; a limit that changed starts full."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, state: SharedState | None = None) -> None:
        self._clock, self._state, self._process = clock, state, uuid.uuid4().hex[:12]
        self._by_id: dict[str, Quota] = {}
        self._ticking: asyncio.Task[None] | None = None

    def of(self, id: str, policy: KeyPolicy) -> Quota:
        """Return the quota of a key. What it draws is kept and given back by a task of the event loop."""
        found = self._by_id.get(id)
        if found is None or (found.policy is not policy and found.policy != policy):
            # Only accepted keys come here, so the key store bounds their number.
            found = self._by_id[id] = Quota(policy, self._clock, state=self._state, id=id, process=self._process)
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.get_running_loop().create_task(self._tick())
        return found

    async def _tick(self) -> None:
        kept = True
        while kept:
            await asyncio.sleep(TICK_S)
            kept = False
            for quota in list(self._by_id.values()):
                try:
                    kept |= await quota.tick()
                except SmallfirstError as error:
                    kept = True
                    _log.warning("limits of keys: %s", error.args[0])


def _slow_down(rule: str, wait_s: float, what: str) -> ApiError:
    wait = max(1, math.ceil(wait_s - 1e-6))
    message = f"{rule} Try again in {wait} s."
    return ApiError(429, message, kind=what, code="rate_limit_exceeded", retry_after_s=wait)


def _duration(seconds: float) -> str:
    """Format as OpenAI does: `17ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
