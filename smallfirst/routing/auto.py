"""Auto: one name for every task. A TaskSelector finds the Router; what belongs to no task goes to the general model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

from smallfirst.base.errors import ModelError
from smallfirst.models.batching import BatchWorker
from smallfirst.models.pricing import Charge, MachinePrice
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    Model,
    Request,
    Route,
    RouteStep,
    max_answer_tokens,
    open_stream,
)
from smallfirst.routing.domain import TaskProfile
from smallfirst.routing.policies import is_conversation


class TaskSelection(NamedTuple):
    """Where a request goes, and why."""

    task: str | None
    """The task; None for a request that belongs to none."""
    step: RouteStep
    """With the out-of-domain score and the threshold of the task, or of the nearest one."""
    charges: tuple[Charge, ...] = ()
    """What the selection cost."""


class TaskSelector:
    """Profiles of several tasks side by side. Not thread-safe.

    A request belongs to the task of the lowest out-of-domain score within its threshold, or to none.
    """

    def __init__(self, profiles: Mapping[str, TaskProfile], *, price: MachinePrice | None = None) -> None:
        """Take profiles by task name; of equal scores the earlier task's wins."""
        self.profiles = dict(profiles)
        self._price = price or MachinePrice()

    def select(self, request: Request) -> TaskSelection:
        """Return the task of a request, by its last user message; a conversation only goes to tasks that have some."""
        began, conversation = time.perf_counter(), is_conversation(request)
        asked = {n: p for n, p in self.profiles.items() if p.parameters.conversations or not conversation}
        scores = {name: profile.measure([request.text])[0].ood_score for name, profile in asked.items()}
        task, why = self._decide(scores)
        nearest = task or min(scores, key=scores.__getitem__, default=None)
        of = {} if nearest is None else {"score": scores[nearest], "threshold": self.profiles[nearest].threshold}
        busy_s = time.perf_counter() - began
        charge = self._price.charge("auto", busy_s)
        paid = {"cost_usd": charge.usd or 0.0, "latency_ms": busy_s * 1000}
        return TaskSelection(task, RouteStep(stage="auto", decision="passed on", why=why, **of, **paid), (charge,))

    def _decide(self, scores: Mapping[str, float]) -> tuple[str | None, str]:
        if not scores:
            return None, "a conversation, while every task expects a single message" if self.profiles else "no tasks"

        def describe(name: str) -> str:
            return f"{name} (out-of-domain score {scores[name]:.3f}, threshold {self.profiles[name].threshold:.3f})"

        within = [name for name, score in scores.items() if score <= self.profiles[name].threshold]
        if not within:
            return None, f"belongs to no task; nearest is {describe(min(scores, key=scores.__getitem__))}"
        nearest = min(within, key=scores.__getitem__)
        return nearest, f"like requests of {describe(nearest)}"


class AutoRouter:
    """Routers by task behind one name, itself a Model."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})
    """Streaming only: embeddings and label probabilities belong to one task's model."""

    name = "auto"

    def __init__(self, selector: TaskSelector, routers: Mapping[str, Model], general: Model | None) -> None:
        self.routers, self.general = dict(routers), general
        self._worker: BatchWorker[Request, TaskSelection] = BatchWorker(
            lambda requests: [selector.select(request) for request in requests], name=self.name, max_batch_size=8
        )

    @property
    def max_answer_tokens(self) -> int | None:
        return max_answer_tokens(*self.routers.values(), self.general)

    async def complete(self, request: Request) -> Completion:
        """Return the answer of the task's Router, or of the general model. Raise ModelError if there is neither."""
        selection, model = await self._select(request)
        return _with_selection(selection, await model.complete(request))

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        selection, model = await self._select(request)
        async with open_stream(model, request) as chunks:
            async for chunk in chunks:
                if chunk.completion is not None:
                    chunk = Chunk(completion=_with_selection(selection, chunk.completion))
                yield chunk

    async def aclose(self) -> None:
        await self._worker.aclose()
        for model in {id(m): m for m in (*self.routers.values(), self.general) if m}.values():
            await model.aclose()

    async def _select(self, request: Request) -> tuple[TaskSelection, Model]:
        selection = await self._worker.submit(request)
        model = self.routers.get(selection.task) if selection.task else self.general
        if model is None:
            raise ModelError(f"{self.name}: {selection.step.why}, and there is no general model to ask")
        return selection, model


def _with_selection(selection: TaskSelection, completion: Completion) -> Completion:
    step, route = selection.step, completion.route
    if route is None:
        last = RouteStep(
            stage="large",
            decision="answered",
            why="the request belongs to no task",
            model=completion.answered_by,
            cost_usd=completion.cost_usd,
            latency_ms=completion.latency_ms,
        )
        route = Route(stage="large", why=step.why, certified=False, trail=(last,))
    return completion.with_charges(
        (*selection.charges, *completion.charges),
        route=route.model_copy(update={"trail": (step, *route.trail)}),
        latency_ms=completion.latency_ms + step.latency_ms,
    )
