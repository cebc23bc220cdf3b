"""Auto: each request goes to its task, with the selector's step and cost; all else goes to the general model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from smallfirst.base.errors import ModelError
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request, Route, RouteStep
from smallfirst.routing.auto import AutoRouter, TaskSelection


class ByWord:
    """Select the task whose name the request contains."""

    def select(self, request: Request) -> TaskSelection:
        task = next((name for name in ("tickets", "claims") if name in request.text), None)
        scores = {name: 0.1 if name == task else 0.99 for name in ("tickets", "claims")}
        why = f"like {task}" if task else "belongs to no task"
        return TaskSelection(
            task=task, scores=scores, threshold=0.97, why=why, by_states=False, cost_usd=0.001, latency_ms=2.0
        )


class NamedModel:
    """Says its name; a Router if it has a route."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})

    def __init__(self, name: str, *, routed: bool = True) -> None:
        self.name, self.routed, self.closed = name, routed, 0

    async def complete(self, request: Request) -> Completion:
        step = RouteStep(stage="small", decision="kept", why="sure")
        route = Route(stage="small", why="sure", certified=True, task=self.name, trail=(step,))
        return Completion(
            text=self.name,
            answered_by=self.name,
            latency_ms=10.0,
            cost_usd=0.1,
            route=route if self.routed else None,
        )

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        yield Chunk(text=self.name)
        yield Chunk(completion=await self.complete(request))

    async def aclose(self) -> None:
        self.closed += 1


def made(general: NamedModel | None = None) -> AutoRouter:
    routers: dict[str, Model] = {"tickets": NamedModel("tickets"), "claims": NamedModel("claims")}
    return AutoRouter(ByWord(), routers, general)  # type: ignore[arg-type]


def ask(auto: AutoRouter, text: str) -> Completion:
    async def once() -> Completion:
        try:
            return await auto.complete(Request.ask(text))
        finally:
            await auto.aclose()

    return asyncio.run(once())


def test_a_request_goes_to_its_task_and_says_how_that_was_found() -> None:
    answer = ask(made(), "about claims")
    assert (answer.text, answer.cost_usd, answer.latency_ms) == ("claims", pytest.approx(0.101), 12.0)
    assert answer.route is not None
    assert (answer.route.task, answer.route.certified) == ("claims", True)
    first, second = answer.route.trail
    assert (first.stage, first.why, first.score, first.threshold) == ("auto", "like claims", 0.1, 0.97)
    assert first.cost_usd == 0.001
    assert second.stage == "small"


def test_a_request_of_no_task_goes_to_the_general_model_uncertified() -> None:
    answer = ask(made(NamedModel("big", routed=False)), "write a poem")
    assert answer.text == "big"
    assert answer.route is not None
    assert (answer.route.stage, answer.route.task, answer.route.certified) == ("large", "", False)
    assert [(s.stage, s.decision) for s in answer.route.trail] == [("auto", "passed on"), ("large", "answered")]
    assert answer.route.trail[0].score == 0.99


def test_without_a_general_model_a_foreign_request_is_an_error_that_says_so() -> None:
    with pytest.raises(ModelError, match="auto: belongs to no task, and there is no general model to ask"):
        ask(made(), "write a poem")


def test_a_stream_carries_the_same_route() -> None:
    async def collect() -> list[Chunk]:
        auto = made()
        chunks = [chunk async for chunk in auto.stream(Request.ask("my tickets"))]
        await auto.aclose()
        return chunks

    chunks = asyncio.run(collect())
    assert [chunk.text for chunk in chunks] == ["tickets", ""]
    completion = chunks[-1].completion
    assert completion is not None
    assert completion.route is not None
    assert [step.stage for step in completion.route.trail] == ["auto", "small"]
    assert completion.latency_ms == 12.0


def test_closing_closes_every_model_once() -> None:
    general = NamedModel("big", routed=False)
    auto = made(general)
    asyncio.run(auto.aclose())
    assert [model.closed for model in (*auto.routers.values(), general)] == [1, 1, 1]  # type: ignore[attr-defined]
