"""A bounded number of models in memory: the one not used for longest goes, one that answers never does."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from jinja2.exceptions import TemplateError

from smallfirst.base.errors import ConfigError, RegistryError, Unavailable
from smallfirst.interfaces.openai_finetuning import models
from smallfirst.interfaces.openai_finetuning.models import LazyModel, ModelCache
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request
from smallfirst.serving.errors import ApiError

ASK = Request.ask("hello")


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting all that the tests hold takes half a second a closed model."""
    monkeypatch.setattr(models.gc, "collect", lambda: 0)


class Held:
    """A model that says when it is loaded and closed, and answers once `go` is set."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})

    def __init__(self, name: str, story: list[str]) -> None:
        self.name, self._story = name, story
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def complete(self, request: Request) -> Completion:
        if self.error:
            raise self.error
        if request.text == "wait":
            await self.go.wait()
        return Completion(text=self.name, answered_by=self.name, latency_ms=1, cost_usd=0)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        yield Chunk(completion=await self.complete(request))

    async def aclose(self) -> None:
        self._story.append(f"-{self.name}")


class Shelf:
    """Loads models, and keeps what happened."""

    def __init__(self, most: int) -> None:
        self.story: list[str] = []
        self.held: dict[str, Held] = {}
        self.error: Exception | None = None
        self.may_load = threading.Event()
        self.may_load.set()
        self.loaded = ModelCache(self.load, max_models=most)

    def load(self, name: str, reference: str) -> Model:
        assert reference == f"{name}/1"
        assert self.may_load.wait(60)
        if self.error:
            raise self.error
        self.story.append(f"+{name}")
        self.held[name] = Held(name, self.story)
        return self.held[name]

    def model(self, name: str) -> LazyModel:
        return LazyModel(name, f"{name}/1", self.loaded)

    async def ask(self, name: str, text: str = "hello") -> str:
        return (await self.model(name).complete(Request.ask(text))).text


async def test_the_one_not_used_for_longest_makes_room() -> None:
    shelf = Shelf(most=2)
    for name in "abacb":
        assert await shelf.ask(name) == name
    assert shelf.story == ["+a", "+b", "-b", "+c", "-a", "+b"]
    await shelf.loaded.aclose()
    assert sorted(shelf.story[6:]) == ["-b", "-c"]


async def test_a_model_is_loaded_once_for_all_who_ask_at_the_same_time() -> None:
    shelf = Shelf(most=1)
    assert await asyncio.gather(*(shelf.ask("a") for _ in range(5))) == ["a"] * 5
    assert shelf.story == ["+a"]


async def test_one_that_answers_is_not_closed_and_another_waits_for_its_turn() -> None:
    shelf = Shelf(most=1)
    await shelf.ask("a")
    answering = asyncio.create_task(shelf.ask("a", "wait"))
    others = [asyncio.create_task(shelf.ask(name)) for name in "bcb"]
    await asyncio.sleep(0.05)
    assert shelf.story == ["+a"]
    shelf.held["a"].go.set()
    assert await asyncio.gather(answering, *others) == ["a", "b", "c", "b"]
    assert shelf.story[:2] == ["+a", "-a"]
    most = 0
    for event in shelf.story:
        most += 1 if event[0] == "+" else -1
        assert most <= 1, shelf.story


async def test_who_leaves_while_it_loads_stops_it_for_nobody() -> None:
    shelf = Shelf(most=1)
    shelf.may_load.clear()
    leaves, stays = (asyncio.create_task(shelf.ask("a")) for _ in range(2))
    await asyncio.sleep(0.05)
    leaves.cancel()
    await asyncio.sleep(0.05)
    shelf.may_load.set()
    assert await stays == "a"
    assert leaves.cancelled()
    assert await shelf.ask("b") == "b"  # nobody holds it any more
    assert shelf.story == ["+a", "-a", "+b"]


async def test_who_leaves_while_room_is_made_leaves_no_gap() -> None:
    shelf = Shelf(most=1)
    shelf.may_load.clear()
    first = asyncio.create_task(shelf.ask("a"))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(shelf.ask("b"))  # must wait until `a` is loaded and closed
    await asyncio.sleep(0.05)
    waiting.cancel()
    shelf.may_load.set()
    assert await shelf.ask("c") == "c"
    assert shelf.story == ["+a", "-a", "+c"]


async def test_a_model_that_cannot_be_loaded_is_tried_again() -> None:
    shelf = Shelf(most=1)
    for error in (RegistryError("damaged"), ConfigError("no model")):
        shelf.error = error
        with pytest.raises(Unavailable, match="a cannot be loaded"):
            await shelf.ask("a")
    shelf.error = None
    assert await shelf.ask("a") == "a"


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("too long"), "context_length_exceeded"), (TemplateError("roles must alternate"), None)],
)
async def test_a_conversation_it_cannot_read_is_the_fault_of_the_request(error: Exception, code: str | None) -> None:
    shelf = Shelf(most=1)
    await shelf.ask("a")
    shelf.held["a"].error = error
    with pytest.raises(ApiError) as caught:
        await shelf.ask("a")
    assert (caught.value.status, caught.value.code) == (400, code)
    with pytest.raises(ApiError):
        _ = [chunk async for chunk in shelf.model("a").stream(ASK)]


async def test_an_answer_in_pieces_keeps_the_model_until_its_end() -> None:
    shelf = Shelf(most=1)
    stream = shelf.model("a").stream(ASK)
    chunk = await anext(stream)
    assert chunk.completion is not None
    other = asyncio.create_task(shelf.ask("b"))
    await asyncio.sleep(0.05)
    assert shelf.story == ["+a"]
    await stream.aclose()  # type: ignore[attr-defined]
    assert await other == "b"
