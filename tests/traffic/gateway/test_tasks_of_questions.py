"""A learnt typed question is answered by its small model in both shapes, noted in the ledger and compared in shadow."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fixtures.gateway import OpenUpstreams
from fixtures.takeover import NOUNS, TEACHER, LearntTask, cases, source

from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow
from smallfirst.traffic.gateway.decisions import DecisionRoutes
from smallfirst.traffic.gateway.http import GatewayRequest, GatewayResponse, UpstreamAnswer
from smallfirst.traffic.gateway.tasks import TakenOverTasks
from smallfirst.traffic.task_source import Slot, TaskSource, TaskTemplate, Template, TextPattern, TurnPattern
from smallfirst.traffic.wire.dialects import read_prompt

DECISIONS, SYSTEM_ONE = "/v1/decisions", "/v1/systemone"
CASES = dict(cases(20, seed=5))
QUEUES = sorted(NOUNS)
QUESTION = {"type": "choice", "instructions": "Which queue?", "choices": [{"value": queue} for queue in QUEUES]}
URGENT = {"type": "predicate", "instructions": "It is urgent."}


def of_question() -> TaskSource:
    """The learnt task as if it had been found in recorded decisions."""
    prompt = read_prompt(DECISIONS, {"model": "big", "input": "", "questions": [QUESTION]})
    assert prompt is not None
    pieces = (("system", (prompt.turns[0].text,)), ("user", ("", "")))
    turns = tuple(TurnPattern(role=role, text=TextPattern(pieces=text)) for role, text in pieces)
    wording = TaskTemplate(
        template=Template(turns=turns, response_format=prompt.response_format), slots=(Slot(name="text"),)
    )
    plain = source().answer_format.model_copy(update={"prefix": ""})
    return source().model_copy(update={"templates": (wording,), "answer_format": plain})


class Judge(OpenUpstreams):
    """An upstream of OpenAI's shape that knows the right queue."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def ask(self, request: GatewayRequest) -> UpstreamAnswer:
        body = json.loads(request.body)
        self.asked.append([question["type"] for question in body["questions"]])
        answers = [self.answer(question, CASES[body["input"]]) for question in body["questions"]]
        response = {"model": TEACHER, "answers": answers, "usage": {"input_tokens": 40, "output_tokens": 1}}
        return UpstreamAnswer(200, [], json.dumps(response).encode(), "default", 400.0)

    def answer(self, question: dict[str, Any], right: str) -> dict[str, Any]:
        if question["type"] == "predicate":
            return {"type": "predicate", "name": None, "probability": 0.5}
        listed = [{"value": queue, "probability": float(queue == right)} for queue in QUEUES]
        return {"type": "choice", "name": None, "choice": right, "confidence": 1.0, "probabilities": listed}


@pytest.fixture
def served(learnt: LearntTask, tmp_path, monkeypatch):
    """Ask both routes about all cases at a live share; return the responses, the upstream and the ledger."""
    monkeypatch.setattr(TaskSource, "of", classmethod(lambda cls, folder: of_question()))

    def run(share: float) -> tuple[list[GatewayResponse | None], Judge, Ledger]:
        if share:
            file = learnt.takeovers
            file.put(file.get("queues").moved("live", cause="person", why="test", share=share))
        judge, found = Judge(), []

        async def session() -> None:
            tasks = TakenOverTasks(Ledger(tmp_path / "ledger.db"), learnt.takeovers, poll_interval_s=0)
            routes = DecisionRoutes(tasks=tasks)
            await tasks.start()
            for text in CASES:
                questions = {"queue": {**QUESTION, "criteria": dict.fromkeys(QUEUES)}}
                del questions["queue"]["choices"]
                ours = {"model": "big", "input": text, "questions": [QUESTION, URGENT]}
                theirs = {"model": "big", "state": text, "questions": questions}
                for path, body in ((DECISIONS, ours), (SYSTEM_ONE, theirs)) if share else ((DECISIONS, ours),):
                    request = GatewayRequest("POST", path, b"", [], json.dumps(body).encode())
                    found.append(await routes.handle(request, judge))  # type: ignore[arg-type]
            while routes._background._running or tasks.tasks["queues"].router._tasks:
                await asyncio.sleep(0.01)
            await tasks.aclose()

        asyncio.run(session())
        return found, judge, Ledger(tmp_path / "ledger.db")

    return run


def test_certified_answers_are_the_same_in_both_shapes_with_all_probabilities(served):
    found, judge, ledger = served(1.0)
    bodies = [json.loads(response.body) if response else None for response in found]
    small = 0
    for ours, theirs in zip(bodies[::2], bodies[1::2], strict=True):
        if theirs is None or "task" not in theirs["smallfirst"]["answers"][0]:
            continue
        small += 1
        one, other = ours["answers"][0], theirs["answers"]["queue"]
        assert one["choice"] == other["choice"]
        assert {option["value"]: option["probability"] for option in one["probabilities"]} == other["probabilities"]
        assert sum(other["probabilities"].values()) == pytest.approx(1)
        assert ours["smallfirst"]["answers"][0]["probabilities"] == "calibrated to the large model"
        assert ours["answers"][1] == {"type": "predicate", "name": None, "probability": 0.5}
    assert small > 10
    assert judge.asked.count(["predicate"]) == small
    rows = [row for row in ledger.entries(LedgerRow) if row.certified]
    assert len(rows) == 2 * small
    assert {row.id.partition("#")[2] for row in rows} == {"0"}
    ledger.close()


def test_in_shadow_the_upstream_answers_and_the_draft_is_compared(served):
    found, judge, ledger = served(0.0)
    assert judge.asked == [["choice", "predicate"]] * len(CASES)
    assert all(json.loads(response.body)["answers"][0]["choice"] in QUEUES for response in found)
    assert all(response.captured is not None for response in found)
    assert len(ledger.entries(AuditRow)) > 10
    ledger.close()
