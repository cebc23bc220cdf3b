"""Serve fine-tuned models by their `ft:` names from a cache of loaded models, least recently used first out.

Loading takes seconds, for which the first request waits. A model in use is never closed; if all are, a request waits.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from jinja2.exceptions import TemplateError

from smallfirst import Capability, Chunk, Completion, Model, Request
from smallfirst.base.errors import ConfigError, SmallfirstError, Unavailable
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import JobFolder, lookup
from smallfirst.interfaces.openai_finetuning.files import unix_seconds
from smallfirst.models.pricing import MachinePrice
from smallfirst.serving.plugins import ApiError, open_stream

_log = logging.getLogger("smallfirst.serving")

INTERFACE, ORGANISATION = "openai", "smallfirst"
JOB_ID = re.compile(r"ftjob-[0-9a-f]{16}")
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


class ModelCache:
    """A bounded number of models in memory. One is loaded at a time, and who leaves meanwhile stops it for nobody."""

    def __init__(self, load: Load, *, max_models: int) -> None:
        self._load, self._max_models = load, max_models
        self._models: dict[str, Model] = {}  # least recently used first
        self._n_users: Counter[str] = Counter()
        self._changing, self._freed = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def use(self, name: str, reference: str) -> AsyncIterator[Model]:
        """Keep the model in memory until the block ends. Raise what loading raises."""
        while True:
            async with self._changing:
                if name in self._models:
                    self._models[name] = model = self._models.pop(name)
                    self._n_users[name] += 1
                    break
            await asyncio.shield(asyncio.create_task(self._fetch(name, reference)))
        try:
            yield model
        finally:
            self._n_users[name] -= 1
            self._freed.set()

    async def _fetch(self, name: str, reference: str) -> None:
        async with self._changing:
            while name not in self._models and len(self._models) >= self._max_models:
                idle = next((other for other in self._models if not self._n_users[other]), None)
                if idle is None:
                    self._freed.clear()
                    await self._freed.wait()
                else:
                    await self._close(idle)
            if name not in self._models:
                self._models[name] = await asyncio.to_thread(self._load, name, reference)

    async def _close(self, name: str) -> None:
        await self._models.pop(name).aclose()
        # A model and its worker refer to each other: without this the weights stay until the garbage collector runs.
        await asyncio.to_thread(gc.collect)

    async def aclose(self) -> None:
        async with self._changing:
            for name in [*self._models]:
                await self._close(name)


class FineTunedModels:
    """The models of succeeded jobs, by name and owner."""

    def __init__(self, *, max_models: int, machine: MachinePrice) -> None:
        def load(name: str, reference: str) -> Model:
            from smallfirst import load_model, resolve

            return load_model(resolve(reference).folder, name=name, price=machine)

        self._loaded = ModelCache(load, max_models=max_models)

    def find(self, name: str, owner: str) -> Model | None:
        """Return the owner's model, loaded at its first request; None if the owner has none of this name."""
        reference = _reference(name, owner)
        return LazyModel(name, reference, self._loaded) if reference else None

    def folder(self, name: str, owner: str) -> Path | None:
        """Return the folder of the owner's model, or None. Raise RegistryError if its files have changed."""
        from smallfirst import resolve

        reference = _reference(name, owner)
        return resolve(reference).folder if reference else None

    def names(self, owner: str) -> Mapping[str, int]:
        """Return the owner's models, newest first, each with its creation time in seconds since 1970."""
        jobs = [job for job in queue.all_jobs() if is_owned_by(job, owner) and job.state == "COMPLETED" and job.result]
        return {model_name(job): unix_seconds(job.events[-1].at) for job in jobs}

    async def aclose(self) -> None:
        await self._loaded.aclose()


def _reference(name: str, owner: str) -> str | None:
    """Return where the owner's model of this name is registered."""
    id = job_id(name)
    job = lookup(id) if id else None
    if job is None or model_name(job) != name or not is_owned_by(job, owner) or job.state != "COMPLETED":
        return None
    return job.result.reference if job.result else None


class LazyModel:
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
