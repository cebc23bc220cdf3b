"""LabelModel: concurrent requests share passes; each gets its own answer, honest probabilities, and its own errors."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.base.errors import ModelError, RequestRefused
from smallfirst.models.label_model import LabelLogProbs, LabelModel, TextEmbedding, log_softmax, softmax
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing.prices import MachinePrice
from smallfirst.models.protocol import Capability, Completion, Model, Request
from smallfirst.tasks.classify import Classify

LABELS = tuple(f"label-{i}" for i in range(7))
MANIFEST = Manifest(kind="words", task=Classify(name="digits", labels=LABELS), base="")
TEMPERED = MANIFEST.model_copy(update={"temperature": 2.0})
PRICE = MachinePrice(usd_per_hour=1.0, utilisation=0.5)
SLOPE = (0.1, 0.3, 0.05, 0.2, 0.02, 0.25, 0.08)


class DigitScorer:
    """Reads the text as a label's index; 0.7 for that label, 0.05 for each other. Waits for `gate`."""

    embed = None

    def __init__(self) -> None:
        self.gate, self.began = threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[list[str]] = []

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        self.batches.append(list(texts))
        self.began.set()
        assert self.gate.wait(10)
        if "broken" in texts:
            raise ValueError("no number")
        if "short" in texts:
            return []
        rows = [[math.log(0.7) if i == int(text) else math.log(0.05) for i in range(7)] for text in texts]
        return [LabelLogProbs(row, n_tokens=3, busy_s=0.36) for row in rows]


class SlopeScorer:
    """The same probabilities for every text, and a vector."""

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        return [LabelLogProbs([math.log(p) for p in SLOPE], 4, 0.36) for _ in texts]

    def embed(self, texts: Sequence[str]) -> list[TextEmbedding]:
        return [TextEmbedding([0.6, 0.8] if text else [1.0, 0.0], 5, 0.18) for text in texts]


def ask(model: LabelModel, *texts: str) -> list[Completion]:
    """Answers to requests made at the same moment; errors are raised."""

    async def together() -> list[Completion]:
        return await asyncio.gather(*(model.complete(Request.ask(text)) for text in texts))

    return asyncio.run(together())


async def queued(model: LabelModel, scorer: DigitScorer, *texts: str) -> list[asyncio.Task[Completion]]:
    """Tasks of these requests: the first is being scored, which its closed gate delays, and the others wait."""
    scorer.gate.clear()
    first = asyncio.create_task(model.complete(Request.ask(texts[0])))
    await asyncio.to_thread(scorer.began.wait, 10)
    rest = [asyncio.create_task(model.complete(Request.ask(text))) for text in texts[1:]]
    await asyncio.sleep(0.01)
    return [first, *rest]


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


def test_a_temperature_changes_the_confidence_and_not_the_answer() -> None:
    (answer,) = ask(LabelModel(DigitScorer(), TEMPERED), "2")
    expected = math.sqrt(0.7) / (math.sqrt(0.7) + 6 * math.sqrt(0.05))
    assert (answer.text, answer.confidence) == ("label-2", pytest.approx(expected))


def test_a_stream_is_the_label_and_then_the_completion() -> None:
    async def chunks() -> list[object]:
        text, last = [
            chunk async for chunk in LabelModel(DigitScorer(), MANIFEST, name="mine").stream(Request.ask("3"))
        ]
        assert last.completion is not None
        return [text.text, last.completion.text, last.completion.answered_by]

    assert asyncio.run(chunks()) == ["label-3", "label-3", "mine"]


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
    assert (found[1].n_tokens, found[1].cost_usd) == (4, pytest.approx(0.0002))
    assert asyncio.run(model.probabilities([])) == []


def test_embeddings_come_in_order_with_tokens_and_cost() -> None:
    model = LabelModel(SlopeScorer(), MANIFEST, price=PRICE)
    assert Capability.EMBEDDINGS in model.capabilities

    async def both() -> tuple[object, Completion]:
        return await asyncio.gather(model.embed(["a", "", "b"]), model.complete(Request.ask("any")))

    embedded, answer = asyncio.run(both())
    (line,) = answer.charges
    assert (line.model, line.basis, line.usd, line.busy_s) == ("digits", "machine time", answer.cost_usd, 0.36)
    assert [line.tokens.prompt_tokens for line in embedded.charges] == [15]
    assert embedded[:3] == ([[0.6, 0.8], [1.0, 0.0], [0.6, 0.8]], 15, pytest.approx(0.0003))
    assert answer.text == "label-1"


def test_a_scorer_without_vectors_has_no_embeddings() -> None:
    model = LabelModel(DigitScorer(), MANIFEST)
    assert Capability.EMBEDDINGS not in model.capabilities
    with pytest.raises(RequestRefused, match="digits has no embeddings"):
        asyncio.run(model.embed(["4"]))


@pytest.mark.parametrize("logs", [[math.nan] * 7, [-math.inf] * 7])
def test_a_model_with_damaged_weights_is_not_ready(logs: list[float]) -> None:
    class Damaged(SlopeScorer):
        def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
            return [LabelLogProbs(logs, 4, 0.0) for _ in texts]

    good = LabelModel(SlopeScorer(), MANIFEST)
    assert Capability.READINESS in good.capabilities
    asyncio.run(good.ready())
    with pytest.raises(ModelError, match="label probabilities are not numbers"):
        asyncio.run(LabelModel(Damaged(), MANIFEST).ready())


def test_requests_of_the_same_moment_each_get_their_own_answer() -> None:
    numbers = [(i * i) % 7 for i in range(300)]
    answers = ask(LabelModel(DigitScorer(), MANIFEST), *map(str, numbers))
    assert [answer.text for answer in answers] == [LABELS[number] for number in numbers]


def test_waiting_requests_share_a_pass_except_cancelled_ones() -> None:
    scorer = DigitScorer()

    async def play() -> list[object]:
        tasks = await queued(LabelModel(scorer, MANIFEST), scorer, "0", "1", "2", "3")
        tasks[0].cancel()
        tasks[2].cancel()
        await asyncio.sleep(0.01)
        scorer.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    kinds = [type(answer).__name__ for answer in asyncio.run(play())]
    assert kinds == ["CancelledError", "Completion", "CancelledError", "Completion"]
    assert scorer.batches == [["0"], ["1", "3"]]  # a request cancelled in the queue is not even read


def test_no_pass_is_larger_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LabelModel, "max_batch_size", 4)
    scorer = DigitScorer()
    ask(LabelModel(scorer, MANIFEST), *["1"] * 50)
    assert sum(map(len, scorer.batches)) == 50
    assert max(map(len, scorer.batches)) <= 4


def test_a_text_that_fails_fails_alone() -> None:
    scorer = DigitScorer()
    model = LabelModel(scorer, MANIFEST)

    async def play() -> list[object]:
        tasks = await queued(model, scorer, "0", "broken", "1", "2")
        scorer.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, failed, *rest = asyncio.run(play())
    assert isinstance(failed, ModelError)
    assert str(failed) == "digits could not answer: no number"
    assert [one.text for one in (first, *rest)] == ["label-0", "label-1", "label-2"]  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="digits could not answer: 1 texts, 0 results"):
        ask(model, "short")
    assert ask(model, "5")[0].text == "label-5"


def test_a_closed_model_refuses_at_once_and_may_be_closed_twice() -> None:
    model = LabelModel(DigitScorer(), MANIFEST)

    async def play() -> None:
        await model.aclose()
        await model.aclose()
        await asyncio.wait_for(model.complete(Request.ask("1")), timeout=5)

    with pytest.raises(ModelError, match=r"^digits is closed$"):
        asyncio.run(play())


def test_closing_answers_what_waits_and_ends_the_thread() -> None:
    scorer = DigitScorer()
    model = LabelModel(scorer, MANIFEST, name="leaving")

    async def play() -> list[Completion]:
        tasks = await queued(model, scorer, "0", "1", "2", "3")
        closing = asyncio.create_task(model.aclose())
        await asyncio.sleep(0.01)
        assert not closing.done()
        scorer.gate.set()
        answers = await asyncio.wait_for(asyncio.gather(*tasks), timeout=5)
        await asyncio.wait_for(closing, timeout=5)
        return answers

    assert [answer.text for answer in asyncio.run(play())] == list(LABELS[:4])
    assert "answers of leaving" not in [thread.name for thread in threading.enumerate()]


def test_a_temperature_divides_the_logarithms() -> None:
    logs = [math.log(0.8), math.log(0.2)]
    assert softmax(logs, 1.0) == pytest.approx([0.8, 0.2])
    assert softmax(logs, 2.0) == pytest.approx([2 / 3, 1 / 3])  # √4 to 1
    assert softmax(logs, 0.5) == pytest.approx([16 / 17, 1 / 17])  # 4² to 1
    assert softmax([logs, logs[::-1]], 2.0)[1].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert log_softmax(logs, 2.0) == pytest.approx([math.log(2 / 3), math.log(1 / 3)])


def test_very_small_and_very_large_logarithms_stay_finite() -> None:
    assert softmax([-1e4, 0.0, -1e4], 0.25).tolist() == [0.0, 1.0, 0.0]
    assert softmax([1e4, 1e4], 0.25).tolist() == [0.5, 0.5]
    assert log_softmax([0.0, -1e4], 0.25).tolist() == [0.0, -4e4]


@given(st.lists(st.floats(-40, 0), min_size=2, max_size=9), st.floats(0.25, 8))
def test_a_temperature_keeps_a_distribution_and_its_order(logs: list[float], temperature: float) -> None:
    probabilities = softmax(logs, temperature)
    assert probabilities.sum() == pytest.approx(1)
    by_log = np.argsort(logs, kind="stable")
    assert (np.diff(probabilities[by_log]) >= 0).all()
