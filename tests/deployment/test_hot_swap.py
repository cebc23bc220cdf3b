"""A model_set takes another's place in one step; whoever began before ends there; nothing is closed under a request."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from smallfirst.base.errors import ModelError
from smallfirst.deployment.hot_swap import HotSwapModels, ModelSet
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request

ASKED = Request.ask("where is my card")


class Gated:
    """Answers with its name once its gate is open; fails once it is closed."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})

    def __init__(self, name: str) -> None:
        self.name, self.gate, self.closed, self.n_ended = name, asyncio.Event(), 0, 0

    async def complete(self, request: Request) -> Completion:
        await self.gate.wait()
        if self.closed:
            raise ModelError(f"{self.name} is closed")
        return Completion(text=self.name, answered_by=self.name, latency_ms=1.0, cost_usd=0.0)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        try:
            yield Chunk(text=self.name)
            yield Chunk(completion=await self.complete(request))
        finally:
            self.n_ended += 1

    async def aclose(self) -> None:
        self.closed += 1


def model_set(model: Gated, slot: str = "toy", served: str = "toy") -> ModelSet:
    return ModelSet(slot, {served: model}, model)


async def under_way(proxy: Model) -> asyncio.Task[Completion]:
    task = asyncio.create_task(proxy.complete(ASKED))
    await asyncio.sleep(0)
    return task


async def test_a_request_ends_where_it_began_and_the_next_one_goes_to_the_new_crew() -> None:
    old, new, models = Gated("old"), Gated("new"), HotSwapModels()
    models.put([model_set(old)])
    proxy = models["toy"]
    before = await under_way(proxy)
    models.put([model_set(new)])
    new.gate.set()
    async with asyncio.timeout(60):
        assert (await proxy.complete(ASKED)).text == "new"  # the very proxy that was looked up before the change
        assert (await models["toy"].complete(ASKED)).text == "new"
    assert models.take_idle(idle_s=0) == []
    assert not before.done()
    old.gate.set()
    assert (await before).text == "old"
    assert models.take_idle(idle_s=60) == []  # it lingers
    assert [c.slot for c in models.take_idle(idle_s=0)] == ["toy"]
    assert models.take_idle(idle_s=0) == []  # given out once
    assert (models.retired, old.closed) == ([], 0)


async def test_a_stream_that_is_left_gives_its_place_back_and_ends_the_models_stream() -> None:
    old, models = Gated("old"), HotSwapModels()
    models.put([model_set(old)])
    pieces: Any = models["toy"].stream(ASKED)
    assert (await anext(pieces)).text == "old"
    models.put([model_set(Gated("new"))])
    assert models.take_idle(idle_s=0) == []
    await pieces.aclose()
    assert old.n_ended == 1
    assert len(models.take_idle(idle_s=0)) == 1


async def test_a_failure_gives_its_place_back_too() -> None:
    old, models = Gated("old"), HotSwapModels()
    old.closed, _ = 1, old.gate.set()
    models.put([model_set(old)])
    with pytest.raises(ModelError, match="old is closed"):
        await models["toy"].complete(ASKED)
    models.put([], without=("toy",))
    assert len(models.take_idle(idle_s=0)) == 1
