"""Leases of the review queue: whoever looks at an answer holds it for a while, so that two people get different ones.

They are in the memory of one process. A lease hinders nobody: another may take the answer over, and a verdict counts
whoever holds it.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

LEASE_S = 120.0
"""Seconds for which an answer is held; each claim of it by its holder begins them anew."""
_MOST_REMEMBERED = 10_000


class Holder(NamedTuple):
    """A person at work: a window of a browser, or a program."""

    owner: str
    """Owner of the key; empty where none is asked for."""
    worker: str
    """What tells apart two windows with the same key, or without one."""


class Leases:
    """Who holds which answer, and what each has skipped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._held: dict[str, tuple[Holder, float]] = {}
        self._skipped: dict[Holder, set[str]] = defaultdict(set)

    def holder(self, id: str) -> Holder | None:
        """Return who holds an answer now."""
        held = self._held.get(id)
        return held[0] if held and held[1] > self._clock() else None

    def claim(self, ids: Iterable[str], holder: Holder, *, take_over: bool = False) -> str | None:
        """Hold the first of `ids` that nobody else holds and the holder has not skipped, and let go of all others."""
        with self._lock:
            for id in ids:
                free = self.holder(id) in (None, holder) and id not in self._skipped[holder]
                if free or take_over:
                    self._held = {key: held for key, held in self._held.items() if held[0] != holder and key != id}
                    self._held[id] = (holder, self._clock() + LEASE_S)
                    return id
            return None

    def skip(self, id: str, holder: Holder) -> None:
        """Let go of an answer and do not offer it to the holder again."""
        with self._lock:
            if len(self._skipped) > _MOST_REMEMBERED:
                self._skipped.clear()
            self._skipped[holder].add(id)
            if self.holder(id) == holder:
                del self._held[id]

    def release(self, id: str) -> None:
        """Let go of an answer that is marked."""
        with self._lock:
            self._held.pop(id, None)
