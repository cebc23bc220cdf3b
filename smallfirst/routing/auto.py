"""Auto: one name for everything. Each request goes to the task it belongs to, or to the general model.

The front tells whose a request is from its text, in about a millisecond a task; the task's own Router then decides
between small and large. What no task recognises is answered by the general model, as it came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from smallfirst.errors import ModelError
from smallfirst.models.batching import BatchWorker
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request, Route, RouteStep


class Found(Protocol):
    """Where a request belongs."""

    @property
    def task(self) -> str | None:
        """The task; None for a request that is no task's."""

    @property
    def doubts(self) -> Mapping[str, float]:
        """Doubt of every task that was asked, in [0, 1]."""

    @property
    def limit(self) -> float | None:
        """The most doubt that the task, or the nearest one, takes."""

    @property
    def why(self) -> str:
        """One sentence."""

    @property
    def cost_usd(self) -> float:
        """What it cost to find out."""

    @property
    def latency_ms(self) -> float:
        """How long it took."""


class Chooser(Protocol):
    """Tells whose a request is."""

    def choose(self, request: Request) -> Found:
        """The task, or none, with the reason."""


class AutoRouter:
    """Routers by task behind one name, itself a Model."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})
    """What it can do beyond answering."""

    def __init__(
        self, front: Chooser, routers: Mapping[str, Model], general: Model | None, *, name: str = "auto"
    ) -> None:
        self.routers, self.general, self._name = dict(routers), general, name
        self._worker: BatchWorker[Request, Found] = BatchWorker(
            lambda requests: [front.choose(request) for request in requests], name=name, most_at_once=8
        )

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._name

    async def complete(self, request: Request) -> Completion:
        """The answer of the task's Router, or of the general model."""
        found, model = await self._find(request)
        return _after(found, await model.complete(request))

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The same piece by piece."""
        found, model = await self._find(request)
        async for chunk in model.stream(request):
            if chunk.completion is not None:
                chunk = Chunk(completion=_after(found, chunk.completion))
            yield chunk

    async def aclose(self) -> None:
        """Stop the front and close the Routers and the general model."""
        await self._worker.aclose()
        for model in {id(m): m for m in (*self.routers.values(), self.general) if m}.values():
            await model.aclose()

    async def _find(self, request: Request) -> tuple[Found, Model]:
        found = await self._worker.ask(request)
        model = self.routers.get(found.task) if found.task else self.general
        if model is None:
            raise ModelError(f"{self._name}: {found.why}, and there is no general model to ask")
        return found, model


def _after(found: Found, completion: Completion) -> Completion:
    """The completion with the front's step first, and with what the front took added."""
    score = found.doubts.get(found.task) if found.task else min(found.doubts.values(), default=None)
    step = RouteStep(
        stage="front",
        decision="passed on",
        why=found.why,
        score=score,
        threshold=found.limit,
        cost_usd=found.cost_usd,
        latency_ms=found.latency_ms,
    )
    route = completion.route
    if route is None:
        last = RouteStep(
            stage="large",
            decision="answered",
            why="the request is no task's",
            model=completion.answered_by,
            cost_usd=completion.cost_usd,
            latency_ms=completion.latency_ms,
        )
        route = Route(stage="large", why=found.why, certified=False, trail=(last,))
    return completion.model_copy(
        update={
            "route": route.model_copy(update={"trail": (step, *route.trail)}),
            "cost_usd": completion.cost_usd + found.cost_usd,
            "latency_ms": completion.latency_ms + found.latency_ms,
        }
    )
