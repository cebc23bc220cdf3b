"""Attempts at endpoints: every request that was sent, with what came of it and what it cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass
class Attempt:
    """One request to an endpoint. Until its end is known its outcome is `abandoned` and its cost unknown."""

    endpoint: str
    """The endpoint's base URL."""
    model: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    outcome: str = "abandoned"
    """`answered`, `not connected`, `HTTP 503`, `timeout`, `broken off`, `invalid answer`, …; `abandoned` if the
    caller left first."""
    cost_usd: float | None = None
    """0 if the endpoint did nothing; None if it may have worked and nobody knows for how much."""
    latency_ms: float = 0.0
    started_s: float = field(default_factory=time.perf_counter)

    def end(self, outcome: str, cost_usd: float | None = None) -> None:
        self.outcome, self.cost_usd = outcome, cost_usd
        self.latency_ms = (time.perf_counter() - self.started_s) * 1000


_COLLECTED: ContextVar[list[Attempt] | None] = ContextVar("attempts", default=None)


@contextmanager
def collect_attempts() -> Iterator[list[Attempt]]:
    """Yield a list to which every attempt of the block, and of the tasks that it starts, is added."""
    attempts: list[Attempt] = []
    token = _COLLECTED.set(attempts)
    try:
        yield attempts
    finally:
        _COLLECTED.reset(token)


def new_attempt(endpoint: str, model: str) -> Attempt:
    """Return an attempt that begins now, known to the caller of `collect_attempts`."""
    attempt = Attempt(endpoint, model)
    attempts = _COLLECTED.get()
    if attempts is not None:
        attempts.append(attempt)
    return attempt
