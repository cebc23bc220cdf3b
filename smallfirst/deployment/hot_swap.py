"""Models by served name that are replaced while requests run, and the watcher that follows the registry.

A name leads to a proxy, which passes each request to the model that has the name when the request begins. A replaced
set is closed after its last request, so no request is dropped and none sees half of a change. The watcher polls what
should be served, loads it beside the live models, swaps, and backs off on failure.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from smallfirst.base.errors import ModelError
from smallfirst.models.protocol import DelegatingModel, Model
from smallfirst.serving.server import AsyncCloseable

_RUN_TIMEOUT_S = 120.0


class ModelSet:
    """Models that are replaced together."""

    def __init__(self, slot: str, models: Mapping[str, Model], owner: AsyncCloseable) -> None:
        """`models` takes the place of the set with the same `slot`; closing `owner` frees all that they use."""
        self.slot, self.models, self._owner = slot, dict(models), owner
        self.n_in_flight = 0
        self.idle_since_s = time.monotonic()

    async def aclose(self) -> None:
        await self._owner.aclose()


class HotSwapModels(Mapping[str, Model]):
    """The active model sets by served name. Any thread may replace one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[str, ModelSet] = {}
        self._by_name: dict[str, ModelSet] = {}
        self._proxies: dict[str, ModelProxy] = {}
        self._retired: list[ModelSet] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def put(self, sets: Sequence[ModelSet], *, without: Collection[str] = ()) -> None:
        """Send new requests to `sets` from now on, and empty the slots in `without`."""
        with self._lock:
            kept = {slot: one for slot, one in self._active.items() if slot not in without}
            after = {**kept, **{one.slot: one for one in sets}}
            self._retired += [one for slot, one in self._active.items() if after.get(slot) is not one]
            self._active = after
            self._by_name = {name: one for one in after.values() for name in one.models}
            # A new mapping each time, so that whoever iterates over the old one is not disturbed.
            self._proxies = {
                name: ModelProxy(self, name, model) for one in after.values() for name, model in one.models.items()
            }

    @contextmanager
    def lease(self, name: str) -> Iterator[Model]:
        """Yield the model of a name, which stays open until the context ends. Raise ModelError if there is none."""
        with self._lock:
            found = self._by_name.get(name)
            if found is None:
                raise ModelError(f"{name} is no longer served")
            found.n_in_flight += 1
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
        try:
            yield found.models[name]
        finally:
            with self._lock:
                found.n_in_flight -= 1
                found.idle_since_s = time.monotonic()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` on the event loop that requests come from, or on a new one before the first request."""
        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(work, self._loop).result(_RUN_TIMEOUT_S)
        else:
            asyncio.run(work)

    def take_idle(self, *, idle_s: float) -> list[ModelSet]:
        """Return, once, the replaced sets without a request for `idle_s` seconds; the caller closes them."""
        with self._lock:
            before = time.monotonic() - idle_s
            idle = [one for one in self._retired if not one.n_in_flight and one.idle_since_s <= before]
            self._retired = [one for one in self._retired if one not in idle]
        return idle

    @property
    def active(self) -> dict[str, ModelSet]:
        return self._active

    @property
    def retired(self) -> list[ModelSet]:
        """Sets that were replaced and not handed out by `take_idle` yet."""
        return list(self._retired)

    async def aclose(self) -> None:
        """Close every set; afterwards no name is served."""
        with self._lock:
            every = [*self._retired, *reversed(self._active.values())]
            self._active, self._by_name, self._proxies, self._retired = {}, {}, {}, []
        for one in every:
            await one.aclose()

    def __getitem__(self, name: str) -> Model:
        return self._proxies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._proxies)

    def __len__(self) -> int:
        return len(self._proxies)


class SharedModel(DelegatingModel):
    """A model that several sets share: it stays open when one of them is closed."""

    async def aclose(self) -> None:
        """Do nothing: whoever created the model closes it."""


class ModelProxy(SharedModel):
    """A served name, itself a Model: each request goes to the model that has the name when the request begins."""

    def __init__(self, models: HotSwapModels, served_name: str, model: Model) -> None:
        super().__init__(model)
        self._models, self._served_name = models, served_name

    @contextmanager
    def _target(self) -> Iterator[Model]:
        with self._models.lease(self._served_name) as model:
            yield model


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

    def current(self) -> Any: ...

    def wanted(self) -> Any:
        """Return what should be served; if it is not equal to `current`, it is loaded. Raise any exception."""

    def load(self, wanted: Any) -> AsyncCloseable:
        """Load the models of `wanted` beside the live ones. Raise NotReadyYet or any exception."""

    def activate(self, loaded: Any) -> None: ...

    def failed(self, wanted: Any | None, error: Exception) -> None:
        """Report why `wanted` is not served, or, if it is None, that it could not be looked up."""


@dataclass
class _Failure:
    wanted: Any
    reason: str
    retry_at_s: float
    backoff_s: float


class RegistryWatcher:
    """Watches targets in a thread of its own once `start` was called."""

    def __init__(
        self, models: HotSwapModels, targets: Sequence[WatchedTarget], *, interval_s: float, linger_s: float
    ) -> None:
        """Poll every `interval_s` seconds, which is also the first wait before a retry.

        Replaced models stay open for `linger_s` seconds after their last request.
        """
        self._models, self._targets, self._interval_s, self._linger_s = models, targets, interval_s, linger_s
        self._failures: dict[str, _Failure] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _JOIN_TIMEOUT_S)

    def poll(self) -> list[str]:
        """Check all targets, close idle models, and return the names of changed targets. Never raise."""
        changed = [target.name for target in self._targets if self._check(target)]
        for retired in self._models.take_idle(idle_s=self._linger_s):
            try:
                self._models.run(retired.aclose())
            except Exception:
                _log.exception("%s: replaced models could not be closed", retired.slot)
        return changed

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.poll()

    def _check(self, target: WatchedTarget) -> bool:
        wanted = None
        try:
            wanted = target.wanted()
            if wanted == target.current():
                self._failures.pop(target.name, None)
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
        backoff_s = min(2 * before.backoff_s, MAX_BACKOFF_S) if before and repeated else self._interval_s
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
