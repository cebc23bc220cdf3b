"""SpanModel: each request gets its own answer, confidences and price."""

import asyncio
from collections.abc import Sequence

import pytest

from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import MachinePrice
from smallfirst.models.protocol import Model, Request
from smallfirst.models.spans.model import SpanAnswer, SpanModel
from smallfirst.tasks.extract import Extract

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
MANIFEST = Manifest(kind="tagger", task=Extract(name="cities", json_schema=SCHEMA, max_answer_tokens=9), base="")


class FirstWord:
    """Marks the first word as the city."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def answer(self, texts: Sequence[str]) -> list[SpanAnswer]:
        self.read += texts
        return [SpanAnswer(f'{{"city": "{t.split()[0]}"}}', 0.8, {"city": 0.9}, len(t.split()), 0.36) for t in texts]


async def test_each_request_gets_its_own_answer_with_confidences_cost_and_tokens() -> None:
    scorer = FirstWord()
    model = SpanModel(scorer, MANIFEST, price=MachinePrice(usd_per_hour=1.0, utilisation=0.5))
    assert isinstance(model, Model)
    assert model.max_answer_tokens == 9
    asked = map(Request.ask, ("Bern in May", "Rome", "Oslo"))
    answer, *others = await asyncio.gather(*map(model.complete, asked))
    await model.ready()  # a piece of real work
    await model.aclose()
    assert scorer.read == ["Bern in May", "Rome", "Oslo", "ready"]
    assert [one.text for one in others] == ['{"city": "Rome"}', '{"city": "Oslo"}']
    assert (answer.text, answer.answered_by) == ('{"city": "Bern"}', "cities")
    assert (answer.confidence, answer.field_confidence) == (0.8, {"city": 0.9})
    assert answer.cost_usd == pytest.approx(0.0002)  # 0.36 s / 3600 s × 1 $ / half of it useful
    assert (answer.prompt_tokens, answer.completion_tokens, answer.finish_reason) == (3, 0, "stop")
