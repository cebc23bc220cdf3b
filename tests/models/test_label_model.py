"""LabelModel: concurrent requests share passes; each gets its own answer, honest probabilities, and its own errors."""

import asyncio
import math
from collections.abc import Sequence

import pytest

from smallfirst.models.label_model import LabelLogProbs, LabelModel
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import MachinePrice
from smallfirst.models.protocol import Capability, Completion, Model, Request
from smallfirst.tasks.classify import Classify

LABELS = tuple(f"label-{i}" for i in range(7))
MANIFEST = Manifest(kind="words", task=Classify(name="digits", labels=LABELS), base="")
TEMPERED = MANIFEST.model_copy(update={"temperature": 2.0})
PRICE = MachinePrice(usd_per_hour=1.0, utilisation=0.5)
SLOPE = (0.1, 0.3, 0.05, 0.2, 0.02, 0.25, 0.08)


class DigitScorer:
    """Reads the text as a label's index; 0.7 for that label, 0.05 for each other."""

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        rows = [[math.log(0.7) if i == int(text) else math.log(0.05) for i in range(7)] for text in texts]
        return [LabelLogProbs(row, n_tokens=3, busy_s=0.36) for row in rows]


class SlopeScorer:
    """The same probabilities for every text."""

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        return [LabelLogProbs([math.log(p) for p in SLOPE], 4, 0.36) for _ in texts]


def ask(model: LabelModel, *texts: str) -> list[Completion]:
    """Answers to requests made at the same moment; errors are raised."""

    async def together() -> list[Completion]:
        return await asyncio.gather(*(model.complete(Request.ask(text)) for text in texts))

    return asyncio.run(together())


def test_an_answer_carries_label_confidence_alternatives_cost_and_tokens() -> None:
    model = LabelModel(DigitScorer(), MANIFEST, price=PRICE)
    assert isinstance(model, Model)
    (answer,) = ask(model, "4")
    assert answer.text == "label-4"
    assert answer.answered_by == model.name == "digits"
    assert answer.confidence == pytest.approx(0.7)
    assert answer.cost_usd == pytest.approx(0.0002)  # 0.36 s / 3600 s × 1 $ / half of it useful
    assert (answer.prompt_tokens, answer.completion_tokens, answer.tokens) == (3, 1, ())
    assert answer.latency_ms > 0
    assert answer.route is None


def test_alternatives_are_the_five_best_sorted() -> None:
    (answer,) = ask(LabelModel(SlopeScorer(), MANIFEST), "any")
    assert [label for label, _ in answer.alternatives] == [f"label-{i}" for i in (1, 5, 3, 0, 6)]
    assert [p for _, p in answer.alternatives] == pytest.approx([0.3, 0.25, 0.2, 0.1, 0.08])


@pytest.mark.parametrize(("wanted", "n_top"), [(0, 0), (3, 3), (20, 7)])
def test_a_label_is_one_token_with_the_log_probabilities_asked_for(wanted: int, n_top: int) -> None:
    model = LabelModel(SlopeScorer(), MANIFEST)
    answer = asyncio.run(model.complete(Request.ask("any").model_copy(update={"logprobs": wanted})))
    (token,) = answer.tokens
    assert (token.text, token.octets) == ("label-1", tuple(b"label-1"))
    assert token.logprob == pytest.approx(math.log(0.3))
    expected = sorted(zip(LABELS, SLOPE, strict=True), key=lambda pair: -pair[1])[:n_top]
    assert [label for label, _ in token.top] == [label for label, _ in expected]
    assert [log for _, log in token.top] == pytest.approx([math.log(p) for _, p in expected])


def test_probabilities_of_all_labels_come_in_label_order_with_their_cost() -> None:
    model = LabelModel(SlopeScorer(), TEMPERED, price=PRICE)
    assert Capability.LABEL_PROBABILITIES in model.capabilities
    found = asyncio.run(model.probabilities(["one", "two"]))
    whole = sum(math.sqrt(p) for p in SLOPE)
    assert len(found) == 2
    assert found[1].labels == LABELS
    assert found[1].probabilities == pytest.approx([math.sqrt(p) / whole for p in SLOPE])
    assert (found[1].n_tokens, found[1].charges[0].usd) == (4, pytest.approx(0.0002))
    assert asyncio.run(model.probabilities([])) == []
