"""Bases of models pass calls on; work whose Completion nobody gets is on its caller's bill once, with a price."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from smallfirst.base.errors import BadAnswer, ModelError
from smallfirst.models.label_model import LabelLogProbs, LabelModel
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import (
    Bill,
    CallableModel,
    Capability,
    Chunk,
    Completion,
    DelegatingModel,
    LabelScores,
    Request,
    estimate_written_tokens,
    max_answer_tokens,
    stream_in_one_chunk,
)
from smallfirst.models.response_format import OutputFormat, require_format
from smallfirst.tasks.classify import Classify


class Plain:
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

    async def probabilities(self, texts: Sequence[str], bill=None) -> list[LabelScores]:
        return [LabelScores(("a",), [1.0], 1) for _ in texts]

    async def ready(self) -> None:
        self.log.append("ready")


async def test_calls_and_capabilities_are_those_of_the_wrapped_model() -> None:
    able = Able("able")
    model = DelegatingModel(able, name="desk")
    assert (model.name, DelegatingModel(able).name, model.capabilities) == ("desk", "able", Able.capabilities)
    assert (await model.complete(Request.ask("x"))).text == "able"
    chunks = model.stream(Request.ask("x"))
    assert (await anext(chunks)).text == "able"
    await chunks.aclose()  # type: ignore[attr-defined]
    assert (await model.probabilities(["x"]))[0].labels == ("a",)
    await model.ready()
    await model.aclose()
    assert able.log == ["able", "stream closed", "ready", "closed"]


def test_a_model_without_a_capability_raises_its_name() -> None:
    model = DelegatingModel(Plain("plain"))
    asyncio.run(model.ready())  # nothing to probe
    with pytest.raises(ModelError, match="plain has no label probabilities"):
        asyncio.run(model.probabilities(["x"]))


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


MANIFEST = Manifest(kind="words", task=Classify(name="digits", labels=("a", "b")), base="")


class SlowScorer:
    """Scores nothing before `gate` opens."""

    def __init__(self) -> None:
        self.gate, self.began = threading.Event(), threading.Event()

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        self.began.set()
        assert self.gate.wait(60)
        return [LabelLogProbs([-0.1, -3.0], 3, 0.1) for _ in texts]


def reported(work: Callable[[Bill], Awaitable[object]]) -> list[Completion]:
    bill = Bill()
    asyncio.run(work(bill))  # type: ignore[arg-type]
    return bill.unfinished


def test_a_label_whose_client_left_is_reported_and_one_that_is_returned_is_not() -> None:
    scorer = SlowScorer()
    model = LabelModel(scorer, MANIFEST)

    async def leave(bill: Bill) -> None:
        asked = Request.ask("a text of some length").model_copy(update={"bill": bill})
        task = asyncio.create_task(model.complete(asked))
        await asyncio.to_thread(scorer.began.wait, 60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        scorer.gate.set()
        await model.complete(Request.ask("another"))
        await model.aclose()

    (one,) = reported(leave)
    assert (one.prompt_tokens, one.completion_tokens, one.estimated) == (6, 1, True)
    assert one.cost_usd > 0


def test_an_answer_that_lacks_the_format_is_reported() -> None:
    made = Completion(text="bad", answered_by="m", latency_ms=1, cost_usd=0.5)

    async def refused(bill: Bill) -> None:
        with pytest.raises(BadAnswer):
            await require_format(OutputFormat(None, lambda _: False), made, bill)

    assert [one.text for one in reported(refused)] == ["bad"]
    assert reported(lambda bill: require_format(OutputFormat(None, lambda text: text == "bad"), made, bill)) == []


def test_estimates_of_written_tokens() -> None:
    assert estimate_written_tokens(30, 90) == 30  # a token in each chunk
    assert estimate_written_tokens(1, 400) == 100  # all in one


def test_the_longest_answer_of_several_models_is_known_if_each_knows_its_own() -> None:
    label = LabelModel(SlowScorer(), MANIFEST)
    assert max_answer_tokens(label, None) == 1
    assert max_answer_tokens(label, object()) is None  # type: ignore[arg-type]
