"""Follow the registry: poll what should be served, load it beside the live models, swap, and back off on failure."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from smallfirst.deployment.hot_swap import HotSwapModels
from smallfirst.serving.server import AsyncCloseable

_log = logging.getLogger("smallfirst.serving")

MAX_BACKOFF_S = 60.0
"""Longest time between two attempts to load a target that could not be loaded."""
_JOIN_TIMEOUT_S = 15


class NotReadyYet(Exception):
    """A target lacks something that is expected soon: it is tried at every poll, without back-off."""


class WatchedTarget(Protocol):
    """Something that is served and may move, such as the version with an alias."""

    @property
    def name(self) -> str:
        """Name for the log; no two targets of a watcher have the same."""

    @property
    def interval_s(self) -> float:
        """Seconds between two polls, and before the first retry."""

    def current(self) -> Any: ...

    def wanted(self) -> Any:
        """Return what should be served; if it is not equal to `current`, it is loaded. Raise any exception."""

    def load(self, wanted: Any) -> AsyncCloseable:
        """Load the models of `wanted` beside the live ones. Raise NotReadyYet or any exception."""

    def activate(self, loaded: Any) -> None: ...

    def failed(self, wanted: Any | None, error: Exception) -> None:
        """Report why `wanted` is not served, or, if it is None, that it could not be looked up."""

    def recovered(self) -> None: ...


@dataclass
class _Failure:
    wanted: Any
    reason: str
    retry_at_s: float
    backoff_s: float


class RegistryWatcher:
    """Watches targets in a thread of its own once `start` was called."""

    def __init__(self, models: HotSwapModels, targets: Sequence[WatchedTarget], *, linger_s: float) -> None:
        """`linger_s` is how long replaced models stay open after their last request."""
        self._models, self._targets, self._linger_s = models, targets, linger_s
        self._failures: dict[str, _Failure] = {}
        self._due_at_s = dict.fromkeys((target.name for target in targets), 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _JOIN_TIMEOUT_S)

    def poll(self, targets: Sequence[WatchedTarget] | None = None) -> list[str]:
        """Check `targets`, or all; close idle models; return the names of changed targets. Never raise."""
        changed = [target.name for target in (self._targets if targets is None else targets) if self._check(target)]
        for retired in self._models.take_idle(idle_s=self._linger_s):
            try:
                self._models.run(retired.aclose())
            except Exception:
                _log.exception("%s: replaced models could not be closed", retired.slot)
        return changed

    def _watch(self) -> None:
        while not self._stop.wait(min(target.interval_s for target in self._targets)):
            now = time.monotonic()
            due = [target for target in self._targets if self._due_at_s[target.name] <= now]
            self._due_at_s |= {target.name: now + target.interval_s for target in due}
            self.poll(due)

    def _check(self, target: WatchedTarget) -> bool:
        wanted = None
        try:
            wanted = target.wanted()
            if wanted == target.current():
                if self._failures.pop(target.name, None):
                    target.recovered()
                return False
            failure = self._failures.get(target.name)
            if failure and failure.wanted == wanted and time.monotonic() < failure.retry_at_s:
                return False
            loaded = target.load(wanted)
            if self._stop.is_set():
                self._models.run(loaded.aclose())
                return False
            target.activate(loaded)
        except Exception as error:  # whatever is wrong with new models, the live ones answer
            self._fail(target, wanted, error)
            return False
        self._failures.pop(target.name, None)
        return True

    def _fail(self, target: WatchedTarget, wanted: Any, error: Exception) -> None:
        before, reason = self._failures.get(target.name), one_line(error)
        repeated = before is not None and (before.wanted, before.reason) == (wanted, reason)
        backoff_s = min(2 * before.backoff_s, MAX_BACKOFF_S) if before and repeated else target.interval_s
        wait_s = 0.0 if isinstance(error, NotReadyYet) else backoff_s
        self._failures[target.name] = _Failure(wanted, reason, time.monotonic() + wait_s, backoff_s)
        if repeated:
            return
        try:
            target.failed(wanted, error)
        except Exception:  # a report that fails must not end the watching
            _log.exception("%s: a failure could not be reported: %s", target.name, reason)


def one_line(error: Exception) -> str:
    """Return an error's message in one line of at most 500 characters, without its hint."""
    return " ".join(str(error.args[0] if error.args else "").split())[:500] or type(error).__name__
