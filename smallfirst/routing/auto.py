"""Auto: one name for every task. A TaskSelector finds the Router; what belongs to no task goes to the general model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from smallfirst.errors import ModelError
from smallfirst.models.batching import BatchWorker
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    Model,
    Request,
    Route,
    RouteStep,
    open_stream,
)
from smallfirst.models.usage import max_answer_tokens
from smallfirst.pricing.charge import itemized
from smallfirst.routing.ood.task_selector import TaskSelection, TaskSelector


class AutoRouter:
    """Routers by task behind one name, itself a Model."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})
    """Streaming only: embeddings and label probabilities belong to one task's model."""

    def __init__(
        self, selector: TaskSelector, routers: Mapping[str, Model], general: Model | None, *, name: str = "auto"
    ) -> None:
        self.routers, self.general, self._name = dict(routers), general, name
        self._worker: BatchWorker[Request, TaskSelection] = BatchWorker(
            lambda requests: [selector.select(request) for request in requests], name=name, max_batch_size=8
        )

    @property
    def name(self) -> str:
        return self._name

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
            raise ModelError(f"{self._name}: {selection.why}, and there is no general model to ask")
        return selection, model


def _with_selection(selection: TaskSelection, completion: Completion) -> Completion:
    scores = selection.scores
    step = RouteStep(
        stage="auto",
        decision="passed on",
        why=selection.why,
        score=scores.get(selection.task) if selection.task else min(scores.values(), default=None),
        threshold=selection.threshold,
        cost_usd=selection.cost_usd,
        latency_ms=selection.latency_ms,
    )
    route = completion.route
    if route is None:
        last = RouteStep(
            stage="large",
            decision="answered",
            why="the request belongs to no task",
            model=completion.answered_by,
            cost_usd=completion.cost_usd,
            latency_ms=completion.latency_ms,
        )
        route = Route(stage="large", why=selection.why, certified=False, trail=(last,))
    return completion.with_charges(
        (*itemized("auto", selection.cost_usd, selection.charges), *completion.charges),
        route=route.model_copy(update={"trail": (step, *route.trail)}),
        latency_ms=completion.latency_ms + selection.latency_ms,
    )
