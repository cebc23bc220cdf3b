"""evaluate(): one measure for everything that answers, with a model whose answers are written beside the rows."""

import asyncio

import pytest
from fixtures.rows import answered_rows
from fixtures.server import WholeModel

from smallfirst.base.errors import Unavailable
from smallfirst.base.stats.intervals import wilson
from smallfirst.data.dataset import Dataset
from smallfirst.measuring.evaluate import Evaluation, EvaluationSetup, compare, evaluate, restrict_to_rows
from smallfirst.models.protocol import Completion, Request, Route
from smallfirst.models.stages import Answerer
from smallfirst.tasks.classify import Classify

TASK = Classify(name="desk", labels=("red", "green", "blue"))
GOLD = {"rose": "red", "fire": "red", "grass": "green", "sea": "blue", "sky": "blue"}


class Scripted(WholeModel):
    """Answers from a script; a request takes 10 ms for each request that is in flight with it."""

    name = "scripted-1"

    def __init__(self, script: dict[str, str], routes: dict[str, Route] | None = None) -> None:
        self.script, self.routes = script, routes or {}
        self.in_flight = 0
        self.asked: list[str] = []

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request.text)
        self.in_flight += 1
        await asyncio.sleep(0)  # lets the others in
        latency_ms = 10.0 * self.in_flight
        await asyncio.sleep(0)
        self.in_flight -= 1
        return Completion(
            text=self.script[request.text],
            answered_by=self.name,
            latency_ms=latency_ms,
            cost_usd=0.002,
            confidence=0.75,
            route=self.routes.get(request.text),
        )


def test_no_text_is_measured_from_an_encoders_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forgot = Scripted(GOLD), []
    monkeypatch.setattr("smallfirst.measuring.evaluate.forget_texts", lambda: forgot.append(len(model.asked)))
    setup = EvaluationSetup(TASK, rows(*GOLD), split="test")
    asyncio.run(evaluate(model, setup, candidate="small", probe_rows=4))
    assert forgot == [0, len(GOLD) + 3]  # before all rows, and after three that only warm up


class Down(Scripted):
    async def complete(self, request: Request) -> Completion:
        raise Unavailable("down")


def rows(*texts: str) -> Dataset:
    return answered_rows("rows", *((text, GOLD[text]) for text in texts))


def measured(script: dict[str, str], candidate: str, *texts: str, probe: int = 0) -> Evaluation:
    setup = EvaluationSetup(TASK, rows(*(texts or GOLD)), split="test")
    return asyncio.run(evaluate(Scripted(script), setup, candidate=candidate, probe_rows=probe, note="as said"))


def test_right_wrong_and_unreadable_answers_are_counted_by_hand() -> None:
    script = {"rose": "Red.", "fire": "blue", "grass": "I do not know", "sea": "blue", "sky": "blue"}
    found = measured(script, "small")
    assert found.accuracy == wilson(3, 5)
    assert [row.answer for row in found.rows] == ["red", "blue", None, "blue", "blue"]
    assert [row.correct for row in found.rows] == [True, False, False, True, True]
    # red: 2 * 1 / (1 said + 2 there), green: 0, blue: 2 * 2 / (3 said + 2 there)
    assert found.measures["macro_f1"].value == pytest.approx((2 / 3 + 0 + 4 / 5) / 3)
    assert (found.candidate, found.model, found.task, found.split) == ("small", "scripted-1", "desk", "test")
    assert found.cost_usd_per_1k == pytest.approx(2.0)
    assert found.note == "as said"


def test_latency_is_measured_one_request_at_a_time_and_throughput_with_all_in_flight() -> None:
    together = measured(GOLD, "large")
    assert together.p50_ms == pytest.approx(50.0)  # all five at once
    assert together.requests_per_s is None  # recorded answers have no rate
    alone = measured(GOLD, "small", probe=4)
    assert (alone.p50_ms, alone.p95_ms) == (pytest.approx(10.0), pytest.approx(10.0))
    assert alone.requests_per_s is not None
    assert alone.requests_per_s > 0


def test_the_stage_that_answered_is_taken_from_the_route() -> None:
    routes = {
        "rose": Route(stage="small", why="sure", certified=True),
        "sea": Route(stage="large", why="unsure", certified=False),
    }
    setup = EvaluationSetup(TASK, rows("rose", "sea", "sky"), split="test")
    found = asyncio.run(evaluate(Scripted(GOLD, routes), setup, candidate="routed"))
    assert [(row.stage, row.certified) for row in found.rows] == [("small", True), ("large", False), ("routed", False)]
    assert (found.share(Answerer.SMALL), found.share(Answerer.LARGE)) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_confidence_is_as_the_router_reads_it() -> None:
    routes = {"rose": Route(stage="small", why="sure", certified=True, confidence=0.5)}
    setup = EvaluationSetup(TASK, rows("rose", "sky"), split="test")
    found = asyncio.run(evaluate(Scripted(GOLD, routes), setup, candidate="routed"))
    assert [row.confidence for row in found.rows] == [0.5, 0.75]


def test_a_model_that_does_not_answer_ends_the_evaluation() -> None:
    with pytest.raises(Unavailable, match="down"):
        asyncio.run(evaluate(Down(GOLD), EvaluationSetup(TASK, rows("sea"), split="test"), candidate="large"))


def test_a_part_of_an_evaluation_asks_nothing_again_and_keeps_the_measured_latency() -> None:
    whole = measured(GOLD | {"sky": "red"}, "small", probe=2)
    part = restrict_to_rows(whole, EvaluationSetup(TASK, rows("sky", "rose"), split="part"))
    assert [row.text for row in part.rows] == ["sky", "rose"]
    assert part.accuracy == wilson(1, 2)
    assert (part.p50_ms, part.p95_ms, part.requests_per_s) == (whole.p50_ms, whole.p95_ms, whole.requests_per_s)
    assert part.dataset_fingerprint == rows("rose", "sky").content_fingerprint
    assert (part.split, part.note) == ("part", "as said")


def test_two_evaluations_are_paired_by_content_on_the_rows_both_have_seen() -> None:
    # Pairs, by text: rose both right; fire only the first; grass only the second; sea neither; sky not seen by one.
    first = measured(GOLD | {"grass": "red", "sea": "red"}, "small", "rose", "fire", "grass", "sea", "sky")
    second = measured(GOLD | {"fire": "blue", "sea": "green"}, "large", "sea", "grass", "fire", "rose")
    found = compare(first, second)
    assert (found.first, found.second) == ("small", "large")
    assert found.difference.n == 4
    assert found.difference.value == 0.0
