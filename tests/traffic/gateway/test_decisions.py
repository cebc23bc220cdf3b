"""Each question is answered by its task or by one upstream call, in the shape in which it was asked."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.gateway import OpenUpstreams
from fixtures.takeover import NOUNS, TEACHER, LearntTask, cases, source

from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import LedgerRow
from smallfirst.models.protocol import Capability, Completion, LabelScores
from smallfirst.traffic.gateway.decisions import (
    DecisionRoutes,
    _answer_here,
)
from smallfirst.traffic.gateway.http import GatewayRequest, GatewayResponse, UpstreamAnswer
from smallfirst.traffic.gateway.live_task import Ruling
from smallfirst.traffic.gateway.tasks import Match, TakenOverTasks
from smallfirst.traffic.gateway.upstreams import UpstreamFailed
from smallfirst.traffic.questions import read_decision
from smallfirst.traffic.task_source import (
    AnswerFormat,
    TaskSource,
    TaskTemplate,
    Template,
    TemplateSlot,
    TextPattern,
    TurnPattern,
)
from smallfirst.traffic.wire import ModelAnswer, read_answer, read_prompt

DECISIONS, CHAT = "/v1/decisions", "/v1/chat/completions"
IMAGE = {"type": "input_image", "image_url": "data:,"}


class ScriptedTask:
    """Two tasks: "Which team?" is answered with fees, but for a state with a question mark; "Anger?" is in shadow."""

    agreement = True
    taken = SimpleNamespace(task="team")
    router = SimpleNamespace(router=SimpleNamespace(stages=()))

    def __init__(self):
        self.ruled, self.gave, self.noted = [], [], []

    def find(self, prompt):
        self.wording = prompt.turns[0].text
        return (
            None
            if "urgent" in self.wording
            else (self, Match("team", prompt.turns[1].text, AnswerFormat(kind="label")))
        )

    async def rule(self, asked):
        if "?" in asked.text:
            raise RuntimeError("out of memory")
        self.ruled.append(asked)
        if "Anger" in self.wording:
            return Ruling(self, asked)
        small = Completion(
            text="fees",
            answered_by="team-small@1",
            latency_ms=1,
            cost_usd=0,
            confidence=0.75,
            alternatives=(("fees", 0.75), ("cards", 0.25)),
            prompt_tokens=8,
            completion_tokens=1,
        )
        return Ruling(self, asked, None, small, ModelAnswer("fees"))

    async def answered(self, ruling):
        self.gave.append(ruling.asked.id)

    async def passed(self, ruling, response, *, latency_ms):
        self.noted.append((ruling.asked.id, read_answer(DECISIONS, response)))


async def test_what_no_task_has_to_do_with_passes_as_it_is(ticket, post, upstreams, luna):
    scripted, routes = upstreams(luna), DecisionRoutes(ScriptedTask())
    image = {**ticket, "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}
    for body in ({**ticket, "questions": ticket["questions"][:1]}, image, {"newer": "form"}, b"(compressed)"):
        assert await routes.handle(post(DECISIONS, body), scripted) is None
    assert not scripted.asked


async def test_some_questions_are_answered_small_and_the_rest_by_one_call(ticket, post, upstreams, luna):
    scripted, task = upstreams(luna), ScriptedTask()
    response = await DecisionRoutes(task).handle(post(DECISIONS, ticket), scripted)
    body = json.loads(response.body)
    assert [question["type"] for question in scripted.body["questions"]] == ["predicate", "score"]
    assert len(scripted.asked) == 1
    urgent, team, anger = body["answers"]
    assert urgent == {"type": "predicate", "name": "urgent", "probability": 0.9}
    assert (team["name"], team["choice"], team["confidence"]) == ("team", "fees", pytest.approx(0.625))
    assert [one["probability"] for one in team["probabilities"]] == [0.25, 0.75, 0.0]
    assert (anger["score"], body["model"]) == (0.7, "luna-2026-10-06")
    assert body["usage"]["input_tokens"] == 60 + 8
    assert body["smallfirst"]["answers"] == [
        {"answered_by": "luna-2026-10-06", "probabilities": "upstream"},
        {
            "answered_by": "team-small@1",
            "probabilities": "calibrated to the large model",
            "task": "team",
            "certified": True,
        },
        {"answered_by": "luna-2026-10-06", "probabilities": "upstream"},
    ]
    headers = dict(response.headers)
    assert headers[b"x-smallfirst-answered"] == b"1 small, 2 upstream"
    assert (headers[b"x-request-id"], headers[b"x-ratelimit-remaining-requests"]) == (b"r1", b"9")
    await asyncio.sleep(0)
    assert (task.gave, task.noted) == (["r1#1"], [("r1#2", ModelAnswer("angry"))])
    kept, answer = map(json.loads, (response.captured.request, response.captured.answer.body))
    assert kept == {**ticket, "questions": [ticket["questions"][0], ticket["questions"][2]]}
    assert answer["answers"] == [urgent, anger]
    assert response.captured.answer.upstream == "default"


async def test_an_audit_asks_the_upstream_for_the_one_question_again(ticket, post, upstreams, luna):
    scripted, task = upstreams(luna), ScriptedTask()
    await DecisionRoutes(task).handle(post(DECISIONS, ticket), scripted)
    status, response = await task.ruled[0].again()
    assert (status, read_answer(DECISIONS, response)) == (200, ModelAnswer("cards"))
    assert scripted.body["questions"] == [ticket["questions"][1]]
    scripted.script = lambda body: (500, b"")
    assert await task.ruled[0].again() == (500, None)


async def test_all_answered_small_needs_no_upstream_and_nothing_is_captured(ticket, post, upstreams):
    scripted = upstreams(lambda body: pytest.fail("asked"))
    request = post(DECISIONS, {**ticket, "questions": ticket["questions"][1:2]})
    response = await DecisionRoutes(ScriptedTask()).handle(request, scripted)
    assert (response.captured, json.loads(response.body)["model"]) == (None, "luna")
    assert dict(response.headers)[b"x-smallfirst-answered"] == b"1 small"


async def test_a_task_that_fails_passes_its_question_on(ticket, post, upstreams, luna):
    request = post(DECISIONS, {**ticket, "input": "Is my card lost?"})
    assert await DecisionRoutes(ScriptedTask()).handle(request, upstreams(luna)) is None


async def test_the_upstreams_refusal_comes_back_as_it_was_and_no_small_answer_is_counted(ticket, post, upstreams):
    task = ScriptedTask()
    response = await DecisionRoutes(task).handle(post(DECISIONS, ticket), upstreams(lambda _: (429, b"slow")))
    assert (response.status, response.body, dict(response.headers)[b"retry-after"]) == (429, b"slow", b"3")
    assert not task.gave


class Scoring:
    """A model whose probabilities are given."""

    capabilities = frozenset({Capability.LABEL_PROBABILITIES})
    name = "team-small@1"

    def __init__(self, **shares):
        self.shares = shares

    async def probabilities(self, texts, bill=None):
        assert texts == ["My card"]
        return [LabelScores(tuple(self.shares), list(self.shares.values()), 1, 0.0)]


def ruled(text="fees", alternatives=(), model=None, agreement=False):
    stages = (SimpleNamespace(model=model),) if model else ()
    router = SimpleNamespace(router=SimpleNamespace(stages=stages))
    task = SimpleNamespace(agreement=agreement, taken=SimpleNamespace(task="team"), router=router)
    small = text and Completion(
        text=text, answered_by=Scoring.name, latency_ms=1, cost_usd=0, alternatives=alternatives, prompt_tokens=3
    )
    return Ruling(task, SimpleNamespace(text="My card"), None, small or None, ModelAnswer(text))


@pytest.fixture
def question(ticket):
    return read_decision(ticket).questions[1]  # cards, fees, other


@pytest.mark.parametrize(
    ("one", "probabilities"),
    [
        (ruled(alternatives=(("fees", 0.75), ("cards", 0.25))), (0.25, 0.75, 0.0)),
        (ruled(alternatives=(("fees", 0.5),), model=Scoring(cards=0.2, fees=0.5, other=0.3)), (0.2, 0.5, 0.3)),
        (ruled(alternatives=(("fees", 0.5),), model=Scoring(fees=0.5, cards=0.25, lost=0.25)), (1 / 3, 2 / 3, 0.0)),
        (ruled(), (0.0, 1.0, 0.0)),
    ],
)
async def test_every_option_has_a_probability(question, one, probabilities):
    answer = await _answer_here(question, one)
    assert answer.answer.probabilities == pytest.approx(probabilities)
    assert (answer.by, answer.task, answer.usage.input_tokens) == ("team-small@1", "team", 3)


@pytest.mark.parametrize(
    "one",
    [
        ruled(text=""),
        ruled(text="loans"),
        ruled(alternatives=(("fees", 0.4),), model=Scoring(cards=0.6, fees=0.4)),
        ruled(alternatives=(("fees", 0.4),), model=Scoring(loans=1.0)),
    ],
)
async def test_without_a_certified_label_that_its_probabilities_prefer_the_upstream_answers(question, one):
    assert await _answer_here(question, one) is None


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"answers": []}', b'{"answers": [1, 2, 3]}'])
async def test_an_answer_in_no_form_is_an_error_and_a_refusal_is_kept_as_it_came(ticket, post, upstreams, body):
    routes = DecisionRoutes(ScriptedTask())
    with pytest.raises(UpstreamFailed, match="in no form of its shape") as failed:
        await routes.handle(post(DECISIONS, ticket), upstreams(lambda _: body))
    assert failed.value.status == 502
    assert (await routes.handle(post(DECISIONS, ticket), upstreams(lambda _: (429, body)))).body == body


# A learnt typed question

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
        template=Template(turns=turns, response_format=prompt.response_format), slots=(TemplateSlot(name="text"),)
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
    """Ask about all cases at a live share; return the responses, the upstream and the ledger."""
    monkeypatch.setattr(TaskSource, "of", classmethod(lambda cls, folder: of_question()))

    def run(share: float) -> tuple[list[GatewayResponse | None], Judge, Ledger]:
        if share:
            file = learnt.takeovers
            file.put(file.get("queues").moved("live", cause="person", why="test", share=share))
        judge, found = Judge(), []

        async def session() -> None:
            tasks = TakenOverTasks(Ledger(tmp_path / "ledger.db"), learnt.takeovers, poll_interval_s=0)
            routes = DecisionRoutes(tasks)
            await tasks.start()
            for text in CASES:
                body = {"model": "big", "input": text, "questions": [QUESTION, URGENT]}
                request = GatewayRequest("POST", DECISIONS, b"", [], json.dumps(body).encode())
                found.append(await routes.handle(request, judge))  # type: ignore[arg-type]
            while routes._background._running or tasks.tasks["queues"].router._tasks:
                await asyncio.sleep(0.01)
            await tasks.aclose()

        asyncio.run(session())
        return found, judge, Ledger(tmp_path / "ledger.db")

    return run


def test_certified_answers_come_with_all_probabilities_and_are_noted(served):
    found, judge, ledger = served(1.0)
    bodies = [json.loads(response.body) for response in found if response]
    small = [body for body in bodies if "task" in body["smallfirst"]["answers"][0]]
    assert len(small) > 10
    for body in small:
        queue, urgent = body["answers"]
        assert sum(option["probability"] for option in queue["probabilities"]) == pytest.approx(1)
        assert body["smallfirst"]["answers"][0]["probabilities"] == "calibrated to the large model"
        assert urgent == {"type": "predicate", "name": None, "probability": 0.5}
    assert judge.asked.count(["predicate"]) == len(small)
    rows = [row for row in ledger.entries(LedgerRow) if row.certified]
    assert len(rows) == len(small)
    assert {row.id.partition("#")[2] for row in rows} == {"0"}
    ledger.close()
