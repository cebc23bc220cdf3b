"""SpanModel: concurrent requests share a pass; each gets its own answer, confidences, price and errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from smallfirst.base.errors import ModelError
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import MachinePrice
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.models.spans.model import SpanAnswer, SpanModel
from smallfirst.tasks.extract import Extract

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
MANIFEST = Manifest(kind="tagger", task=Extract(name="cities", json_schema=SCHEMA, max_answer_tokens=9), base="")


class FirstWord:
    """Marks the first word as the city."""

    def __init__(self) -> None:
        self.gate, self.began = threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[list[str]] = []

    def answer(self, texts: Sequence[str]) -> list[SpanAnswer]:
        self.batches.append(list(texts))
        self.began.set()
        assert self.gate.wait(10)
        if "broken" in texts:
            raise ValueError("no words")
        if "short" in texts:
            return []
        return [SpanAnswer(f'{{"city": "{t.split()[0]}"}}', 0.8, {"city": 0.9}, len(t.split()), 0.36) for t in texts]


def ask(model: SpanModel, *texts: str) -> list[Completion]:
    async def together() -> list[Completion]:
        return await asyncio.gather(*(model.complete(Request.ask(text)) for text in texts))

    return asyncio.run(together())


def test_an_answer_carries_its_confidences_cost_and_tokens() -> None:
    model = SpanModel(FirstWord(), MANIFEST, price=MachinePrice(usd_per_hour=1.0, utilisation=0.5))
    assert isinstance(model, Model)
    (answer,) = ask(model, "Bern in May")
    assert (answer.text, answer.answered_by, model.name) == ('{"city": "Bern"}', "cities", "cities")
    assert (answer.confidence, answer.field_confidence) == (0.8, {"city": 0.9})
    assert answer.cost_usd == pytest.approx(0.0002)  # 0.36 s / 3600 s × 1 $ / half of it useful
    assert (answer.prompt_tokens, answer.completion_tokens, answer.finish_reason) == (3, 0, "stop")
    assert model.max_answer_tokens == 9


def test_waiting_requests_share_a_pass_and_each_gets_its_own_answer() -> None:
    scorer = FirstWord()

    async def play() -> list[str]:
        model = SpanModel(scorer, MANIFEST)
        scorer.gate.clear()
        tasks = [asyncio.create_task(model.complete(Request.ask("Bern")))]
        await asyncio.to_thread(scorer.began.wait, 10)
        tasks += [asyncio.create_task(model.complete(Request.ask(city))) for city in ("Rome", "Oslo")]
        await asyncio.sleep(0.01)
        scorer.gate.set()
        found = [answer.text for answer in await asyncio.gather(*tasks)]
        await model.ready()  # a piece of real work
        await model.aclose()
        return found

    assert asyncio.run(play()) == [f'{{"city": "{city}"}}' for city in ("Bern", "Rome", "Oslo")]
    assert scorer.batches == [["Bern"], ["Rome", "Oslo"], ["ready"]]


@pytest.mark.parametrize(("text", "error"), [("broken", "no words"), ("short", "1 texts, 0 results")])
def test_a_scorer_that_fails_is_an_error_of_the_model(text: str, error: str) -> None:
    model = SpanModel(FirstWord(), MANIFEST)
    with pytest.raises(ModelError, match=error):
        ask(model, text)
    assert ask(model, "Rome")[0].text == '{"city": "Rome"}'
