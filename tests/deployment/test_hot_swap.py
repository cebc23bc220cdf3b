"""A crew takes another's place in one step; whoever began before ends there; nothing is closed under a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from smallfirst.deployment.hot_swap import HotSwapModels, ModelSet, SharedModel
from smallfirst.errors import ModelError
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


class Embedding(Gated):
    capabilities = frozenset({Capability.STREAM, Capability.EMBEDDINGS})

    async def embed(self, texts: list[str]) -> Any:
        return [self.name, *texts]


def crew(model: Gated, slot: str = "toy", served: str = "toy") -> ModelSet:
    return ModelSet(slot, {served: model}, model)


async def under_way(door: Model) -> asyncio.Task[Completion]:
    task = asyncio.create_task(door.complete(ASKED))
    await asyncio.sleep(0)
    return task


def test_a_request_ends_where_it_began_and_the_next_one_goes_to_the_new_crew() -> None:
    async def change() -> None:
        old, new, fleet = Gated("old"), Gated("new"), HotSwapModels()
        fleet.put([crew(old)])
        door = fleet["toy"]
        before = await under_way(door)
        fleet.put([crew(new)])
        new.gate.set()
        async with asyncio.timeout(20):
            assert (await door.complete(ASKED)).text == "new"  # the very door that was looked up before the change
            assert (await fleet["toy"].complete(ASKED)).text == "new"
        assert fleet.gone(idle_s=0) == []
        assert not before.done()
        old.gate.set()
        assert (await before).text == "old"
        assert [c.slot for c in fleet.gone(idle_s=0)] == ["toy"]
        assert fleet.gone(idle_s=0) == []  # given out once
        assert (fleet.leaving, old.closed) == ([], 0)

    asyncio.run(change())


def test_a_crew_lingers_after_its_last_request() -> None:
    async def change() -> None:
        old, fleet = Gated("old"), HotSwapModels()
        old.gate.set()
        fleet.put([crew(old)])
        await fleet["toy"].complete(ASKED)
        fleet.put([crew(Gated("new"))])
        assert fleet.gone(idle_s=60) == []
        assert len(fleet.gone(idle_s=0)) == 1

    asyncio.run(change())


def test_a_stream_that_is_left_gives_its_place_back_and_ends_the_models_stream() -> None:
    async def change() -> None:
        old, fleet = Gated("old"), HotSwapModels()
        fleet.put([crew(old)])
        pieces: Any = fleet["toy"].stream(ASKED)
        assert (await anext(pieces)).text == "old"
        fleet.put([crew(Gated("new"))])
        assert fleet.gone(idle_s=0) == []
        await pieces.aclose()
        assert old.n_ended == 1
        assert len(fleet.gone(idle_s=0)) == 1

    asyncio.run(change())


def test_a_failure_gives_its_place_back_too() -> None:
    async def change() -> None:
        old, fleet = Gated("old"), HotSwapModels()
        old.closed, _ = 1, old.gate.set()
        fleet.put([crew(old)])
        with pytest.raises(ModelError, match="old is closed"):
            await fleet["toy"].complete(ASKED)
        fleet.put([], without=("toy",))
        assert len(fleet.gone(idle_s=0)) == 1

    asyncio.run(change())


def test_a_door_can_do_what_the_model_behind_it_can() -> None:
    async def change() -> None:
        fleet = HotSwapModels()
        fleet.put([crew(Embedding("first"))])
        door: Any = fleet["toy"]
        assert Capability.EMBEDDINGS in door.capabilities
        assert await door.embed(["a"]) == ["first", "a"]
        fleet.put([crew(Gated("second"))])
        assert Capability.EMBEDDINGS not in fleet["toy"].capabilities
        with pytest.raises(ModelError, match="second has no embeddings"):
            await door.embed(["a"])

    asyncio.run(change())


def test_slots_come_and_go_by_name_and_the_rest_stays() -> None:
    async def change() -> None:
        a, auto, fleet = Gated("a"), Gated("auto"), HotSwapModels()
        fleet.put([crew(a), crew(auto, "auto", "auto")])
        names = iter(fleet)
        assert next(names) == "toy"
        fleet.put([], without=("auto",))
        assert list(names) == ["auto"]  # whoever was going through the names is not disturbed
        assert (list(fleet), len(fleet), "auto" in fleet) == (["toy"], 1, False)
        assert fleet.active["toy"].models == {"toy": a}
        await fleet.aclose()
        assert (a.closed, auto.closed, list(fleet)) == (1, 1, [])
        with pytest.raises(ModelError, match="toy is served no more"):
            await fleet.door("toy", a).complete(ASKED)

    asyncio.run(change())


def test_a_shared_model_stays_open() -> None:
    async def change() -> None:
        large = Gated("large")
        large.gate.set()
        kept = SharedModel(large)
        await kept.aclose()
        assert (await kept.complete(ASKED)).text == "large"
        assert [c.text async for c in kept.stream(ASKED)] == ["large", ""]
        assert (kept.name, large.closed) == ("large", 0)

    asyncio.run(change())
