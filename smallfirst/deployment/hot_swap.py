"""Models by served name that can be replaced while requests are under way.

A name leads to a door, and a door to whoever stands behind it when a request begins. The models that come and go
together (a task's Router, its small model) are one Crew: it is replaced in one step, and the one before it leaves once
its last request is done, so no request is dropped and none sees half of a change. The price: a lock held for a moment
at the beginning and end of each request, and two crews in memory during a change.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from smallfirst.errors import ModelError
from smallfirst.models.protocol import Model
from smallfirst.models.wrappers import DelegatingModel


class Closes(Protocol):
    """Something that holds models."""

    async def aclose(self) -> None:
        """Free what is held."""


class ModelSet:
    """Models that are replaced together."""

    def __init__(self, slot: str, models: Mapping[str, Model], closes: Closes) -> None:
        """`closes` frees all of them, and what else they stand on; `slot` is whose place they take."""
        self.slot, self.models, self._closes = slot, dict(models), closes
        self.n_in_flight = 0
        """Requests that are answered by it now."""
        self.idle_since_s = time.monotonic()
        """When its last request was done."""

    async def aclose(self) -> None:
        """Free all its models."""
        await self._closes.aclose()


class HotSwapModels(Mapping[str, Model]):
    """The crews on duty, by served name. Any thread may replace one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._crews: dict[str, ModelSet] = {}
        self._behind: dict[str, ModelSet] = {}
        self._doors: dict[str, ModelProxy] = {}
        self._leaving: list[ModelSet] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that requests come from; None before the first."""

    def put(self, crews: Sequence[ModelSet], *, without: Collection[str] = ()) -> None:
        """Nothing back; from now on new requests go to `crews`, and slots in `without` are empty."""
        with self._lock:
            kept = {slot: crew for slot, crew in self._crews.items() if slot not in without}
            after = {**kept, **{crew.slot: crew for crew in crews}}
            self._leaving += [crew for slot, crew in self._crews.items() if after.get(slot) is not crew]
            self._crews = after
            self._behind = {name: crew for crew in after.values() for name in crew.models}
            # A new mapping each time: whoever goes through the old one is not disturbed.
            self._doors = {
                name: ModelProxy(self, name, model) for c in after.values() for name, model in c.models.items()
            }

    @contextmanager
    def lease(self, name: str) -> Iterator[Model]:
        """The model behind a name, which stays open as long as the context lasts. Raises ModelError if it is gone."""
        with self._lock:
            crew = self._behind.get(name)
            if crew is None:
                raise ModelError(f"{name} is served no more")
            crew.n_in_flight += 1
            if self.loop is None:
                self.loop = asyncio.get_running_loop()
        try:
            yield crew.models[name]
        finally:
            with self._lock:
                crew.n_in_flight -= 1
                crew.idle_since_s = time.monotonic()

    def door(self, name: str, model: Model) -> ModelProxy:
        """A way to a served name that stays right when its models are replaced; `model` is who stands there now."""
        return ModelProxy(self, name, model)

    def gone(self, *, idle_s: float) -> list[ModelSet]:
        """Crews that were replaced and had no request for `idle_s` seconds: the caller closes them, nobody else."""
        with self._lock:
            before = time.monotonic() - idle_s
            done = [crew for crew in self._leaving if not crew.n_in_flight and crew.idle_since_s <= before]
            self._leaving = [crew for crew in self._leaving if crew not in done]
        return done

    @property
    def active(self) -> dict[str, ModelSet]:
        """The crews that new requests go to, by slot."""
        return self._crews

    @property
    def leaving(self) -> list[ModelSet]:
        """Crews that were replaced and are not closed yet."""
        return list(self._leaving)

    async def aclose(self) -> None:
        """Close every crew. Names lead nowhere afterwards."""
        with self._lock:
            every = [*self._leaving, *reversed(self._crews.values())]
            self._crews, self._behind, self._doors, self._leaving = {}, {}, {}, []
        for crew in every:
            await crew.aclose()

    def __getitem__(self, name: str) -> Model:
        return self._doors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._doors)

    def __len__(self) -> int:
        return len(self._doors)


class ModelProxy(DelegatingModel):
    """A served name, itself a Model: each request goes to the model that has the name when the request begins."""

    def __init__(self, fleet: HotSwapModels, served: str, model: Model) -> None:
        super().__init__(model)
        self._fleet, self._served = fleet, served

    @contextmanager
    def _target(self) -> Iterator[Model]:
        with self._fleet.lease(self._served) as model:
            yield model

    async def aclose(self) -> None:
        """Do nothing: the fleet closes what it holds."""


class SharedModel(DelegatingModel):
    """A model that several crews share: it stays open when one of them leaves."""

    async def aclose(self) -> None:
        """Do nothing: whoever made the model closes it."""
