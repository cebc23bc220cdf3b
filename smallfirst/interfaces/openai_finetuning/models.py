"""Serve fine-tuned models by their `ft:` names from a cache of loaded models, least recently used first out.

Loading takes seconds, for which the first request waits. A model in use is never closed; if all are, a request waits.
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

from smallfirst import Capability, Chunk, Completion, Model, Request
from smallfirst.errors import ConfigError, SmallfirstError, Unavailable
from smallfirst.interfaces.openai_finetuning.pagination import unix_seconds
from smallfirst.interfaces.openai_finetuning.requests import INTERFACE, JOB_ID
from smallfirst.jobs import queue
from smallfirst.jobs.job_folder import JobFolder
from smallfirst.pricing.machine import MachinePrice
from smallfirst.serving.plugins import ApiError, open_stream

_log = logging.getLogger("smallfirst.serving")

ORGANISATION = "smallfirst"
Load = Callable[[str, str], Model]
"""Loads the model of a name and a registry reference; may take seconds."""


def is_owned_by(job: JobFolder, owner: str) -> bool:
    """Return True if the job was submitted through this API with the owner's key."""
    submitted = job.spec.submitted
    return submitted.get("interface") == INTERFACE and submitted.get("owner") == owner


def model_name(job: JobFolder) -> str:
    """Return the name of the job's model: `ft:base:smallfirst:suffix:id`."""
    suffix = job.spec.submitted.get("suffix") or ""
    return f"ft:{job.spec.model}:{ORGANISATION}:{suffix}:{job.name.removeprefix('ftjob-')}"


def job_id(model: str) -> str | None:
    """Return the id of the job that trained the model of this name; None if the name has another form."""
    id = f"ftjob-{model.rpartition(':')[2]}"
    return id if model.startswith("ft:") and JOB_ID.fullmatch(id) else None


class _CacheEntry:
    def __init__(self, loading: asyncio.Task[Model]) -> None:
        self.loading, self.n_users = loading, 0


class ModelCache:
    """A bounded number of models in memory."""

    def __init__(self, load: Load, *, max_models: int) -> None:
        self._load, self._max_models = load, max_models
        self._entries: dict[str, _CacheEntry] = {}  # least recently used first
        self._closing: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def use(self, name: str, reference: str) -> AsyncIterator[Model]:
        """Keep the model in memory until the block ends. Raise what loading raises."""
        entry = await self._entry(name, reference)
        entry.n_users += 1
        try:
            try:
                # A disconnected client must not cancel the loading that others wait for.
                model = await asyncio.shield(entry.loading)
            except Exception:
                if self._entries.get(name) is entry:
                    del self._entries[name]
                raise
            yield model
        finally:
            entry.n_users -= 1
            self._freed.set()

    async def aclose(self) -> None:
        for name in [*self._entries]:
            self._evict(name)
        await asyncio.gather(*self._closing)

    async def _entry(self, name: str, reference: str) -> _CacheEntry:
        while name not in self._entries:
            if len(self._entries) + len(self._closing) < self._max_models:
                self._entries[name] = _CacheEntry(asyncio.create_task(asyncio.to_thread(self._load, name, reference)))
                break
            if idle := next((other for other, entry in self._entries.items() if not entry.n_users), None):
                self._evict(idle)
            self._freed.clear()
            await self._freed.wait()
        self._entries[name] = entry = self._entries.pop(name)
        return entry

    def _evict(self, name: str) -> None:
        """Close a model in a task of its own, since the request that needs the room may be cancelled."""
        task = asyncio.create_task(_close(self._entries.pop(name)))
        self._closing.add(task)
        task.add_done_callback(self._on_closed)

    def _on_closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        self._freed.set()


class _RegisteredModel(NamedTuple):
    owner: str
    reference: str
    created_at: int


class FineTunedModels:
    """The models of succeeded jobs, by name and owner."""

    def __init__(self, *, max_models: int, machine: MachinePrice) -> None:
        def load(name: str, reference: str) -> Model:
            from smallfirst import load_model, resolve

            return load_model(resolve(reference).folder, name=name, price=machine, certified=False)

        self._loaded = ModelCache(load, max_models=max_models)
        self._registered: dict[str, _RegisteredModel] = {}

    def find(self, name: str, owner: str) -> Model | None:
        """Return the owner's model, loaded at its first request; None if the owner has none of this name."""
        model = self._find_registered(name)
        return FineTunedModel(name, model.reference, self._loaded) if model and model.owner == owner else None

    def folder(self, name: str, owner: str) -> Path | None:
        """Return the folder of the owner's model, or None. Raise RegistryError if its files have changed."""
        from smallfirst import resolve

        model = self._find_registered(name)
        return resolve(model.reference).folder if model and model.owner == owner else None

    def names(self, owner: str) -> Mapping[str, int]:
        """Return the owner's models, newest first, each with its creation time in seconds since 1970."""
        jobs = [job for job in queue.all_jobs() if is_owned_by(job, owner)]
        models = {model_name(job): found for job in jobs if (found := self._registered_by(job))}
        return {name: model.created_at for name, model in models.items()}

    async def aclose(self) -> None:
        await self._loaded.aclose()

    def _find_registered(self, name: str) -> _RegisteredModel | None:
        id = job_id(name)
        if name in self._registered or id is None:
            return self._registered.get(name)
        job = queue.lookup(id)
        return self._registered_by(job) if job is not None and model_name(job) == name else None

    def _registered_by(self, job: JobFolder) -> _RegisteredModel | None:
        name = model_name(job)
        if name not in self._registered and job.result is not None and job.state == "COMPLETED":
            owner = job.spec.submitted["owner"]
            self._registered[name] = _RegisteredModel(owner, job.result.reference, unix_seconds(job.events[-1].at))
        return self._registered.get(name)


class FineTunedModel:
    """A fine-tuned model that is loaded at its first request."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})

    def __init__(self, name: str, reference: str, loaded: ModelCache) -> None:
        self.name, self._reference, self._loaded = name, reference, loaded

    async def complete(self, request: Request) -> Completion:
        """Return the answer. Raise ApiError 400 for an unreadable conversation, Unavailable if loading fails."""
        async with self._ready() as model:
            return await model.complete(request)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        async with self._ready() as model, open_stream(model, request) as chunks:
            async for chunk in chunks:
                yield chunk

    async def aclose(self) -> None:
        """Do nothing: the cache closes loaded models."""

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


async def _close(entry: _CacheEntry) -> None:
    try:
        model = await entry.loading
    except Exception:  # reported to the requests that waited for it
        return
    await model.aclose()
    del model, entry.loading
    # A model and its worker refer to each other: without this the weights stay until the garbage collector runs.
    await asyncio.to_thread(gc.collect)
