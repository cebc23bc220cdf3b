"""Each question is answered by its task or by one upstream call, in the shape in which it was asked."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.gateway import OpenUpstreams
from fixtures.takeover import NOUNS, TEACHER, LearntTask, cases, source
from fixtures.traffic import template
from fixtures.waiting import until_async

from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import LedgerRow
from smallfirst.models.protocol import Capability, Completion, LabelScores
from smallfirst.traffic.gateway.decisions import DecisionRoutes, _answer_here
from smallfirst.traffic.gateway.http import GatewayRequest, GatewayResponse, UpstreamAnswer
from smallfirst.traffic.gateway.live_task import LiveTask, Ruling
from smallfirst.traffic.gateway.tasks import TakenOverTasks
from smallfirst.traffic.gateway.upstreams import UpstreamFailed
from smallfirst.traffic.questions import read_decision
from smallfirst.traffic.task_source import TaskSource, TaskTemplate, TemplateSlot
from smallfirst.traffic.wire import ModelAnswer, read_prompt

Json = dict[str, Any]
DECISIONS = "/v1/decisions"
CASES = dict(cases(20, seed=5))
CASE = next(iter(CASES))
QUEUES = sorted(NOUNS)
URGENT = {"type": "predicate", "name": "urgent", "instructions": "It is urgent."}
QUEUE = {
    "type": "choice",
    "name": "queue",
    "instructions": "Which queue?",
    "choices": [{"value": queue} for queue in QUEUES],
}
ANGER = {"type": "score", "instructions": "Anger?", "levels": [{"label": "calm"}, {"label": "angry"}]}
IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]


def of_question() -> TaskSource:
    """The learnt task as if it had been found in recorded decisions."""
    prompt = read_prompt(DECISIONS, {"model": "big", "input": "", "questions": [QUEUE]})
    asked = template(("system", prompt.turns[0].text), ("user", "", ""), response_format=prompt.response_format)
    wording = TaskTemplate(template=asked, slots=(TemplateSlot(name="text"),))
    plain = source().answer_format.model_copy(update={"prefix": ""})
    return source().model_copy(update={"templates": (wording,), "answer_format": plain})


class Judge(OpenUpstreams):
    """An upstream of OpenAI's shape that knows the right queue, unless it is told what to say."""

    def __init__(self) -> None:
        self.asked: list[list[Json]] = []
        self.says: tuple[int, bytes] | None = None

    async def ask(self, request: GatewayRequest) -> UpstreamAnswer:
        body = json.loads(request.body)
        self.asked.append(body["questions"])
        usage = {"input_tokens": 30 * len(body["questions"]), "output_tokens": 3}
        answers = [_answered(question, CASES[body["input"]]) for question in body["questions"]]
        status, content = self.says or (
            200,
            json.dumps({"model": TEACHER, "answers": answers, "usage": usage}).encode(),
        )
        headers = [(b"x-ratelimit-remaining-requests", b"9"), (b"retry-after", b"3")]
        return UpstreamAnswer(status, headers, content, "default", 400.0)


def _answered(question: Json, right: str) -> Json:
    kind, head = question["type"], {"type": question["type"], "name": question.get("name")}
    if kind == "predicate":
        return {**head, "probability": 0.9}
    if kind == "choice":
        listed = [{"value": queue, "probability": float(queue == right)} for queue in QUEUES]
        return {**head, "choice": right, "confidence": 1.0, "probabilities": listed}
    listed = [{"value": 0, "label": "calm", "probability": 0.3}, {"value": 1, "label": "angry", "probability": 0.7}]
    return {**head, "score": 0.7, "confidence": 0.4, "probabilities": listed}


class Application:
    """Asks the route as the proxy does."""

    def __init__(self, tasks: TakenOverTasks) -> None:
        self.routes, self.judge = DecisionRoutes(tasks), Judge()

    async def ask(self, *questions: Json, body: bytes = b"", **more: Any) -> GatewayResponse | None:
        asked = body or json.dumps({"model": "big", "input": CASE, "questions": questions, **more}).encode()
        headers = [(b"accept-encoding", b"gzip")]
        return await self.routes.handle(GatewayRequest("POST", DECISIONS, b"", headers, asked, id="r1"), self.judge)  # type: ignore[arg-type]


@pytest.fixture
def serve(learnt: LearntTask, tmp_path, monkeypatch):
    """An application in front of the learnt question; afterwards it has the rows of the ledger."""
    monkeypatch.setattr(TaskSource, "of", classmethod(lambda cls, folder: of_question()))

    @asynccontextmanager
    async def run(share: float = 1.0) -> AsyncIterator[Application]:
        file = learnt.takeovers
        if share:
            file.put(file.get("queues").moved("live", cause="person", why="test", share=share))
        tasks = TakenOverTasks(Ledger(tmp_path / "ledger.db"), file, poll_interval_s=0.001)
        await tasks.start()
        application = Application(tasks)
        yield application
        router = tasks.tasks["queues"].router
        await until_async(lambda: not application.routes._background._running and not router._tasks)
        await tasks.aclose()
        with closing(Ledger(tmp_path / "ledger.db")) as ledger:
            application.rows = list(ledger.entries(LedgerRow))

    return run


async def test_what_no_task_has_to_do_with_passes_as_it_is(serve, monkeypatch):
    async with serve() as app:
        for more in ({}, {"input": IMAGE}, {"newer": "form"}, {"body": b"(compressed)"}):
            assert await app.ask(*([QUEUE] if more else [URGENT]), **more) is None
        monkeypatch.setattr(LiveTask, "rule", None)  # a task that fails
        assert await app.ask(QUEUE) is None
        assert not app.judge.asked
    assert app.rows == []


async def test_some_questions_are_answered_small_and_the_rest_by_one_call(serve):
    async with serve() as app:
        asked = {"model": "big", "input": CASE, "questions": [URGENT, QUEUE, ANGER]}
        response = await app.ask(URGENT, QUEUE, ANGER)
        assert app.judge.asked == [[URGENT, ANGER]]
        body = json.loads(response.body)
        headers = dict(response.headers)
        assert headers[b"x-smallfirst-answered"] == b"1 small, 2 upstream"
        assert (headers[b"x-request-id"], headers[b"x-ratelimit-remaining-requests"]) == (b"r1", b"9")
        kept, answer = map(json.loads, (response.captured.request, response.captured.answer.body))
        assert kept == {**asked, "questions": [URGENT, ANGER]}
        assert answer["answers"] == body["answers"][::2]
        assert response.captured.answer.upstream == "default"
    urgent, queue, anger = body["answers"]
    assert (urgent, anger) == (_answered(URGENT, ""), _answered(ANGER, ""))
    assert (queue["name"], queue["choice"]) == ("queue", CASES[CASE])
    assert sum(option["probability"] for option in queue["probabilities"]) == pytest.approx(1)
    assert body["model"] == TEACHER
    upstream = {"answered_by": TEACHER, "probabilities": "upstream"}
    small = {"probabilities": "calibrated to the large model", "task": "queues", "certified": True}
    notes = body["smallfirst"]["answers"]
    assert (notes[0], notes[2]) == (upstream, upstream)
    assert {**notes[1], "answered_by": ""} == {**small, "answered_by": ""}
    assert [(row.certified, row.id) for row in app.rows] == [(True, "r1#1")]
    assert body["usage"]["input_tokens"] == 60 + app.rows[0].prompt_tokens
    assert app.judge.asked[1:] == [[QUEUE]]  # an audit


async def test_all_answered_small_needs_no_upstream_and_nothing_is_captured(serve):
    async with serve() as app:
        response = await app.ask(QUEUE)
        assert not app.judge.asked
        assert (response.captured, json.loads(response.body)["model"]) == (None, "big")
        assert dict(response.headers)[b"x-smallfirst-answered"] == b"1 small"


async def test_in_shadow_the_upstream_answers_and_is_noted(serve):
    async with serve(0.0) as app:
        response = await app.ask(URGENT, QUEUE)
        assert app.judge.asked == [[URGENT, QUEUE]]
        assert dict(response.headers)[b"x-smallfirst-answered"] == b"2 upstream"
    assert [(row.id, row.answered_by) for row in app.rows] == [("r1#1", TEACHER)]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"answers": []}', b'{"answers": [1, 2]}'])
async def test_an_answer_in_no_form_is_an_error_and_a_refusal_comes_back_as_it_was(serve, body):
    async with serve() as app:
        app.judge.says = (200, body)
        with pytest.raises(UpstreamFailed, match="in no form of its shape") as failed:
            await app.ask(URGENT, QUEUE, ANGER)
        assert failed.value.status == 502
        app.judge.says = (429, body)
        response = await app.ask(URGENT, QUEUE)
        assert (response.status, response.body, dict(response.headers)[b"retry-after"]) == (429, body, b"3")
    assert app.rows == []  # no small answer is counted


# The probability of every option


class Scoring:
    """A model whose probabilities are given."""

    capabilities = frozenset({Capability.LABEL_PROBABILITIES})
    name = "team-small@1"

    def __init__(self, **shares):
        self.shares = shares

    async def probabilities(self, texts, bill=None):
        assert texts == ["My card"]
        return [LabelScores(tuple(self.shares), list(self.shares.values()), 1)]


def ruled(text="loans", model=None, **alternatives):
    stages = (SimpleNamespace(model=model),) if model else ()
    router = SimpleNamespace(router=SimpleNamespace(stages=stages))
    task = SimpleNamespace(agreement=False, taken=SimpleNamespace(task="queues"), router=router)
    given = {"answered_by": Scoring.name, "latency_ms": 1, "cost_usd": 0, "prompt_tokens": 3}
    small = Completion(text=text, alternatives=tuple(alternatives.items()), **given) if text else None
    return Ruling(task, SimpleNamespace(text="My card"), None, small, ModelAnswer(text))


@pytest.mark.parametrize(
    ("one", "probabilities"),
    [
        (ruled(loans=0.75, cards=0.25), (0.25, 0.75, 0.0)),
        (ruled(model=Scoring(cards=0.2, loans=0.5, travel=0.3), loans=0.5), (0.2, 0.5, 0.3)),
        (ruled(model=Scoring(loans=0.5, cards=0.25, lost=0.25), loans=0.5), (1 / 3, 2 / 3, 0.0)),
        (ruled(), (0.0, 1.0, 0.0)),
        # Without a certified label that its probabilities prefer the upstream answers.
        (ruled(text=""), None),
        (ruled(text="fees"), None),
        (ruled(model=Scoring(cards=0.6, loans=0.4), loans=0.4), None),
        (ruled(model=Scoring(fees=1.0), loans=0.4), None),
    ],
)
def test_every_option_has_a_probability_or_the_upstream_answers(one, probabilities):
    asked = read_decision({"model": "big", "input": "My card", "questions": [QUEUE]})
    answer = asyncio.run(_answer_here(asked.questions[0], one))
    assert (answer and answer.answer.probabilities) == (probabilities and pytest.approx(probabilities))
    if answer is not None:
        assert (answer.by, answer.probabilities, answer.usage.prompt_tokens) == ("team-small@1", "calibrated", 3)
