"""Fine-tuned models by their `ft:` names: loaded at the first request, the one not used for longest makes room.

Loading reads every file once, to see that it is the registered one, and takes seconds: the first request waits for it.
A model that answers is never closed; if all answer, a request for another one waits for its turn.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from jinja2.exceptions import TemplateError

from smallfirst.errors import ConfigError, SmallfirstError, Unavailable
from smallfirst.interfaces.openai_finetuning.objects import is_owned_by, job_id, model_name
from smallfirst.interfaces.openai_finetuning.pagination import unix_seconds
from smallfirst.jobs import queue
from smallfirst.jobs.job_folder import JobFolder
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request
from smallfirst.pricing import MachinePrice
from smallfirst.serving.openai.errors import ApiError

_log = logging.getLogger("smallfirst.serving")

Load = Callable[[str, str], Model]
"""From a name and what `versions.resolve` takes to the Model; may take seconds."""


class _Seat:
    """A place in memory."""

    def __init__(self, loading: asyncio.Task[Model]) -> None:
        self.loading, self.n_users = loading, 0


class ModelCache:
    """At most so many models in memory."""

    def __init__(self, load: Load, *, most: int) -> None:
        self._load, self._most = load, most
        self._seats: dict[str, _Seat] = {}  # the one used last is the last one
        self._leaving: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def use(self, name: str, reference: str) -> AsyncIterator[Model]:
        """The model, kept in memory at least until the block ends. Raises what loading raises."""
        seat = await self._seat(name, reference)
        seat.n_users += 1
        try:
            try:
                # A client that leaves must not stop the loading that others wait for.
                model = await asyncio.shield(seat.loading)
            except Exception:
                if self._seats.get(name) is seat:
                    del self._seats[name]
                raise
            yield model
        finally:
            seat.n_users -= 1
            self._freed.set()

    async def aclose(self) -> None:
        """Close all of them."""
        for name in [*self._seats]:
            self._let_go(name)
        await asyncio.gather(*self._leaving)

    async def _seat(self, name: str, reference: str) -> _Seat:
        while name not in self._seats:
            if len(self._seats) + len(self._leaving) < self._most:
                self._seats[name] = _Seat(asyncio.create_task(asyncio.to_thread(self._load, name, reference)))
                break
            if idle := next((other for other, seat in self._seats.items() if not seat.n_users), None):
                self._let_go(idle)
            self._freed.clear()
            await self._freed.wait()
        self._seats[name] = seat = self._seats.pop(name)
        return seat

    def _let_go(self, name: str) -> None:
        """Nothing back; a task of its own closes the model: who asked for room may leave before it is there."""
        task = asyncio.create_task(_close(self._seats.pop(name)))
        self._leaving.add(task)
        task.add_done_callback(self._has_left)

    def _has_left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        self._freed.set()


class _Made(NamedTuple):
    """A job's model; never changes once it is registered."""

    owner: str
    reference: str
    at: int


class FineTunedModels:
    """The models of succeeded jobs, looked up by name for whoever's job it was."""

    def __init__(self, *, most: int, machine: MachinePrice) -> None:
        def load(name: str, reference: str) -> Model:
            from smallfirst.models.loading import load_model

            return load_model(_resolve(reference), name=name, price=machine)

        self._loaded = ModelCache(load, most=most)
        self._made: dict[str, _Made] = {}

    def find(self, name: str, owner: str) -> Model | None:
        """The owner's model, to be loaded when it is asked; None if the owner has none of this name."""
        made = self._look_up(name)
        return FineTunedModel(name, made.reference, self._loaded) if made and made.owner == owner else None

    def folder(self, name: str, owner: str) -> Path | None:
        """The owner's model as files; None if there is none. Raises RegistryError if they have changed since."""
        made = self._look_up(name)
        return _resolve(made.reference) if made and made.owner == owner else None

    def names(self, owner: str) -> Mapping[str, int]:
        """The owner's models, each with the second since 1970 at which it was made; newest first."""
        jobs = [job for job in queue.all_jobs() if is_owned_by(job, owner)]
        made = {model_name(job): found for job in jobs if (found := self._made_by(job))}
        return {name: one.at for name, one in made.items()}

    async def aclose(self) -> None:
        """Close those that are loaded."""
        await self._loaded.aclose()

    def _look_up(self, name: str) -> _Made | None:
        id = job_id(name)
        if name in self._made or id is None:
            return self._made.get(name)
        try:
            job = queue.find(id, restart_dead=False)
        except queue.JobNotFound:
            return None
        return self._made_by(job) if model_name(job) == name else None

    def _made_by(self, job: JobFolder) -> _Made | None:
        name = model_name(job)
        if name not in self._made and job.result is not None and job.state == "COMPLETED":
            owner = job.spec.submitted["owner"]
            self._made[name] = _Made(owner, job.result.reference, unix_seconds(job.events[-1].at))
        return self._made.get(name)


class FineTunedModel:
    """A fine-tuned model that is loaded when it is asked."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})
    """What it can do beyond answering."""

    def __init__(self, name: str, reference: str, loaded: ModelCache) -> None:
        self.name, self._reference, self._loaded = name, reference, loaded

    async def complete(self, request: Request) -> Completion:
        """The answer. Raises WireError 400 for a conversation it cannot read, Unavailable if it cannot be loaded."""
        async with self._ready() as model:
            return await model.complete(request)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer piece by piece; raises as `complete`."""
        async with self._ready() as model:
            async for chunk in model.stream(request):
                yield chunk

    async def aclose(self) -> None:
        """Nothing: what is loaded is closed by whoever keeps it."""

    @asynccontextmanager
    async def _ready(self) -> AsyncIterator[Model]:
        answering = False
        try:
            async with self._loaded.use(self.name, self._reference) as model:
                answering = True
                yield model
        except TemplateError as error:
            what = f"The model's chat template refuses this conversation: {error}."
            raise ApiError(400, what, param="messages") from None
        except ConfigError:
            if not answering:
                raise Unavailable(f"{self.name} cannot be loaded") from None
            what = "The messages before the last one are too long for this model."
            raise ApiError(400, what, param="messages", code="context_length_exceeded") from None
        except SmallfirstError as error:
            if answering:
                raise
            _log.exception("%s cannot be loaded", self.name)
            raise Unavailable(f"{self.name} cannot be loaded: {error}") from error


async def _close(seat: _Seat) -> None:
    try:
        model = await seat.loading
    except Exception:  # it was told to those who asked for it
        return
    await model.aclose()
    del model, seat.loading
    # A model and its worker refer to each other: without this the weights stay until Python happens to look.
    await asyncio.to_thread(gc.collect)


def _resolve(reference: str) -> Path:
    from smallfirst.registry import versions

    return versions.resolve(reference).folder
