"""A general model that answers a task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from smallfirst.models.few_shot import PromptedModel
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request, stream_in_one_chunk
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.task import Shot

TASK = Classify(name="cards", labels=("card_lost", "card_stolen"))


class Parrot:
    """A model that always says the same and remembers what it was asked."""

    capabilities: frozenset[Capability] = frozenset()

    name = "parrot"

    def __init__(self, says: str) -> None:
        self.says = says
        self.asked: list[Request] = []
        self.n_closed = 0

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request)
        return Completion(text=self.says, answered_by=self.name, latency_ms=1, cost_usd=0.5)

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return stream_in_one_chunk(self, request)

    async def aclose(self) -> None:
        self.n_closed += 1


class Echo:
    """Chooses one example made from the text itself."""

    def choose(self, text: str) -> Sequence[Shot]:
        return [Shot(f"like {text}", "card_stolen")]


def ask(model: Model, text: str = "it is gone", max_tokens: int = 256) -> Completion:
    return asyncio.run(model.complete(Request.ask(text, max_tokens=max_tokens)))


def test_answer_is_the_parsed_label() -> None:
    completion = ask(PromptedModel(Parrot("Label: **Card lost**."), TASK))
    assert (completion.text, completion.answered_by, completion.cost_usd) == (
        "card_lost",
        "parrot",
        0.5,
    )


def test_words_without_a_label_are_kept_as_they_are() -> None:
    assert ask(PromptedModel(Parrot("I cannot tell."), TASK)).text == "I cannot tell."


def test_instructions_and_examples_come_before_the_text() -> None:
    parrot = Parrot("card_lost")
    model = PromptedModel(parrot, TASK, shots=[Shot("fixed", "card_lost")], chooser=Echo())
    ask(model, "it is gone")
    system, *turns = parrot.asked[0].messages
    assert (system.role, "- card_stolen" in system.content) == ("system", True)
    assert [(turn.role, turn.content) for turn in turns] == [
        ("user", "fixed"),
        ("assistant", "card_lost"),
        ("user", "like it is gone"),
        ("assistant", "card_stolen"),
        ("user", "it is gone"),
    ]


def test_answer_is_short_and_a_request_may_ask_for_less() -> None:
    parrot = Parrot("card_lost")
    model = PromptedModel(parrot, TASK)
    ask(model)
    ask(model, max_tokens=5)
    assert [request.max_tokens for request in parrot.asked] == [32, 5]


def test_stream_gives_the_parsed_label_in_one_piece() -> None:
    async def pieces() -> list[str]:
        model = PromptedModel(Parrot("Card lost!"), TASK)
        return [chunk.text async for chunk in model.stream(Request.ask("it is gone"))]

    assert asyncio.run(pieces()) == ["card_lost", ""]


def test_closing_closes_the_general_model() -> None:
    parrot = Parrot("card_lost")
    model = PromptedModel(parrot, TASK)
    assert isinstance(model, Model)
    assert model.name == "parrot"
    asyncio.run(model.aclose())
    assert parrot.n_closed == 1
