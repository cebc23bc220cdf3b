"""Models by served name that can be replaced while requests are running.

A name leads to a proxy, which passes each request to the model that has the name when the request begins. A replaced
set is closed after its last request, so no request is dropped and none sees half of a change.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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


class ModelProxy(DelegatingModel):
    """A served name, itself a Model: each request goes to the model that has the name when the request begins."""

    def __init__(self, models: HotSwapModels, served_name: str, model: Model) -> None:
        super().__init__(model)
        self._models, self._served_name = models, served_name

    @contextmanager
    def _target(self) -> Iterator[Model]:
        with self._models.lease(self._served_name) as model:
            yield model

    async def aclose(self) -> None:
        """Do nothing: HotSwapModels closes its sets."""


class SharedModel(DelegatingModel):
    """A model that several sets share: it stays open when one of them is closed."""

    async def aclose(self) -> None:
        """Do nothing: whoever created the model closes it."""
