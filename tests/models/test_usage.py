"""Work whose Completion nobody gets is reported once, with tokens and a price."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from smallfirst.base.errors import BadAnswer
from smallfirst.models.label_model import LabelLogProbs, LabelModel
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Completion, Request
from smallfirst.models.response_format import OutputFormat, generate_in_format
from smallfirst.models.usage import collect_unfinished, estimate_written_tokens, max_answer_tokens
from smallfirst.tasks.classify import Classify

MANIFEST = Manifest(kind="words", task=Classify(name="digits", labels=("a", "b")), base="")


class SlowScorer:
    """Scores nothing before `gate` opens."""

    embed = None

    def __init__(self) -> None:
        self.gate, self.began = threading.Event(), threading.Event()

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        self.began.set()
        assert self.gate.wait(10)
        return [LabelLogProbs([-0.1, -3.0], 3, 0.1) for _ in texts]


def reported(work: Callable[[], Awaitable[object]]) -> list[Completion]:
    async def run() -> list[Completion]:
        found = collect_unfinished()
        await work()
        return found

    return asyncio.run(run())


def test_a_label_whose_client_left_is_reported_and_one_that_is_returned_is_not() -> None:
    scorer = SlowScorer()
    model = LabelModel(scorer, MANIFEST)

    async def leave() -> None:
        task = asyncio.create_task(model.complete(Request.ask("a text of some length")))
        await asyncio.to_thread(scorer.began.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        scorer.gate.set()
        await model.complete(Request.ask("another"))
        await model.aclose()

    (one,) = reported(leave)
    assert (one.prompt_tokens, one.completion_tokens, one.estimated) == (6, 1, True)
    assert one.cost_usd > 0


def test_answers_that_lack_the_format_are_reported_if_none_is_returned() -> None:
    async def generate(fresh: bool) -> Completion:
        return Completion(text="good" if fresh else "bad", answered_by="m", latency_ms=1, cost_usd=0.5)

    async def refused() -> None:
        with pytest.raises(BadAnswer):
            await generate_in_format(OutputFormat(None, lambda _: False), generate)

    assert [one.text for one in reported(refused)] == ["bad", "good"]
    assert reported(lambda: generate_in_format(OutputFormat(None, lambda text: text == "good"), generate)) == []


def test_estimates_of_written_tokens() -> None:
    assert estimate_written_tokens(30, 90) == 30  # a token in each chunk
    assert estimate_written_tokens(1, 400) == 100  # all in one


def test_the_longest_answer_of_several_models_is_known_if_each_knows_its_own() -> None:
    label = LabelModel(SlowScorer(), MANIFEST)
    assert max_answer_tokens(label, None) == 1
    assert max_answer_tokens(label, object()) is None  # type: ignore[arg-type]
