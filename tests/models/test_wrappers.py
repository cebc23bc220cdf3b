"""A delegating model passes every call and every capability on, and redirects all of them with its target."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import pytest

from smallfirst.base.errors import ModelError
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    LabelScores,
    Model,
    Request,
    stream_in_one_chunk,
)
from smallfirst.models.wrappers import CallableModel, DelegatingModel


class Plain:
    """Answers with its own name."""

    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, name: str) -> None:
        self.name, self.log = name, [name]

    async def complete(self, request: Request) -> Completion:
        return Completion(text=self.name, answered_by=self.name, latency_ms=1, cost_usd=0)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        try:
            async for chunk in stream_in_one_chunk(self, request):
                yield chunk
        finally:
            self.log.append("stream closed")

    async def aclose(self) -> None:
        self.log.append("closed")


class Able(Plain):
    capabilities = frozenset({Capability.LABEL_PROBABILITIES, Capability.READINESS})

    async def probabilities(self, texts: Sequence[str]) -> list[LabelScores]:
        return [LabelScores(("a",), [1.0], 1, 0.0) for _ in texts]

    async def ready(self) -> None:
        self.log.append("ready")


class Redirected(DelegatingModel):
    target: Model

    @contextmanager
    def _target(self) -> Iterator[Model]:
        yield self.target


def test_calls_and_capabilities_are_those_of_the_wrapped_model() -> None:
    able = Able("able")
    model = DelegatingModel(able, name="desk")

    async def play() -> None:
        assert (model.name, DelegatingModel(able).name, model.capabilities) == ("desk", "able", Able.capabilities)
        assert (await model.complete(Request.ask("x"))).text == "able"
        chunks = model.stream(Request.ask("x"))
        assert (await anext(chunks)).text == "able"
        await chunks.aclose()  # type: ignore[attr-defined]
        assert (await model.probabilities(["x"]))[0].labels == ("a",)
        await model.ready()
        await model.aclose()

    asyncio.run(play())
    assert able.log == ["able", "stream closed", "ready", "closed"]


def test_a_model_without_a_capability_raises_its_name() -> None:
    model = DelegatingModel(Plain("plain"))
    asyncio.run(model.ready())  # nothing to probe
    with pytest.raises(ModelError, match="plain has no label probabilities"):
        asyncio.run(model.probabilities(["x"]))


def test_another_target_takes_every_call() -> None:
    model = Redirected(Plain("old"))
    model.target = Able("new")
    assert asyncio.run(model.complete(Request.ask("x"))).text == "new"
    assert asyncio.run(model.probabilities(["x"]))[0].labels == ("a",)


class Echo(CallableModel):
    name = "echo"

    async def complete(self, request: Request) -> Completion:
        return Completion(text=request.text, answered_by=self.name, latency_ms=0, cost_usd=0)


def test_a_call_answers_a_text_or_a_request_with_and_without_an_event_loop() -> None:
    async def inside_a_notebook() -> str:
        return Echo()("card").text

    assert Echo()("card").text == "card"
    assert Echo()(Request.ask("fee")).text == "fee"
    assert asyncio.run(inside_a_notebook()) == "card"
    assert repr(Echo()) == "Echo('echo')"
