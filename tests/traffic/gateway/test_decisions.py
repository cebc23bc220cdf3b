"""Each question is answered by its task or by one upstream call, in the shape in which it was asked."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pydantic
import pytest

from smallfirst.models.protocol import Capability, Completion, LabelScores
from smallfirst.serving.openai.errors import ApiError
from smallfirst.traffic.answer_format import AnswerFormat
from smallfirst.traffic.gateway.decisions import (
    DecisionRoutes,
    DecisionUpstream,
    _answer_here,
    chat_request,
    chat_verdicts,
    invalid_request,
    refuse,
)
from smallfirst.traffic.gateway.live_task import Ruling
from smallfirst.traffic.gateway.tasks import Match
from smallfirst.traffic.gateway.upstreams import UpstreamFailed
from smallfirst.traffic.settings import DecisionSettings
from smallfirst.traffic.wire import openai_decisions, systemone
from smallfirst.traffic.wire.dialects import read_answer
from smallfirst.traffic.wire.messages import Answer

DECISIONS, SYSTEM_ONE, CHAT = "/v1/decisions", "/v1/systemone", "/v1/chat/completions"
IMAGE = {"type": "input_image", "image_url": "data:,"}
JEV = {
    "model": "jev-latest",
    "state": {"ticket": "My card is lost"},
    "questions": {
        "urgent": {"type": "noul", "instructions": "It is urgent."},
        "team": {"type": "choice", "instructions": "Which team?", "criteria": {"cards": None, "fees": None}},
        "only": {"type": "choice", "criteria": {"this": None}},
    },
}


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
        return Ruling(self, asked, None, small, Answer("fees"))

    async def answered(self, ruling):
        self.gave.append(ruling.asked.id)

    async def passed(self, ruling, response, *, latency_ms):
        self.noted.append((ruling.asked.id, read_answer(DECISIONS, response)))


async def test_what_no_task_has_to_do_with_passes_as_it_is(ticket, post, upstreams, luna):
    scripted = upstreams(luna)
    assert await DecisionRoutes().handle(post(DECISIONS, ticket), scripted) is None
    assert await DecisionRoutes().handle(post(DECISIONS, {"newer": "form"}), scripted) is None
    assert await DecisionRoutes().handle(post(DECISIONS, b"(compressed)"), scripted) is None
    assert not scripted.asked


async def test_some_questions_are_answered_small_and_the_rest_by_one_call(ticket, post, upstreams, luna):
    scripted, task = upstreams(luna), ScriptedTask()
    response = await DecisionRoutes(tasks=task).handle(post(DECISIONS, ticket), scripted)
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
    assert (headers[b"x-smallfirst-answered"], headers[b"x-smallfirst-probabilities"]) == (
        b"1 small, 2 upstream",
        b"upstream",
    )
    assert (headers[b"x-request-id"], headers[b"x-ratelimit-remaining-requests"]) == (b"r1", b"9")
    await asyncio.sleep(0)
    assert (task.gave, task.noted) == (["r1#1"], [("r1#2", Answer("angry"))])
    kept, answer = map(json.loads, (response.captured.request, response.captured.answer.body))
    assert kept == {**ticket, "questions": [ticket["questions"][0], ticket["questions"][2]]}
    assert answer["answers"] == [urgent, anger]
    assert response.captured.answer.upstream == "default"


async def test_an_audit_asks_the_upstream_for_the_one_question_again(ticket, post, upstreams, luna):
    scripted, task = upstreams(luna), ScriptedTask()
    await DecisionRoutes(tasks=task).handle(post(DECISIONS, ticket), scripted)
    status, response = await task.ruled[0].again()
    assert (status, read_answer(DECISIONS, response)) == (200, Answer("cards"))
    assert scripted.body["questions"] == [ticket["questions"][1]]
    scripted.script = lambda body: (500, b"")
    assert await task.ruled[0].again() == (500, None)


async def test_all_answered_small_needs_no_upstream_and_nothing_is_captured(ticket, post, upstreams):
    scripted = upstreams(lambda body: pytest.fail("asked"))
    request = post(DECISIONS, {**ticket, "questions": ticket["questions"][1:2]})
    response = await DecisionRoutes(tasks=ScriptedTask()).handle(request, scripted)
    assert (response.captured, json.loads(response.body)["model"]) == (None, "luna")
    assert dict(response.headers)[b"x-smallfirst-answered"] == b"1 small"


async def test_a_task_that_fails_passes_its_question_on(ticket, post, upstreams, luna):
    request = post(DECISIONS, {**ticket, "input": "Is my card lost?"})
    assert await DecisionRoutes(tasks=ScriptedTask()).handle(request, upstreams(luna)) is None


async def test_the_upstreams_refusal_comes_back_as_it_was_and_no_small_answer_is_counted(ticket, post, upstreams):
    task = ScriptedTask()
    response = await DecisionRoutes(tasks=task).handle(post(DECISIONS, ticket), upstreams(lambda _: (429, b"slow")))
    assert (response.status, response.body, dict(response.headers)[b"retry-after"]) == (429, b"slow", b"3")
    assert not task.gave


async def test_system_one_is_answered_by_a_chat_model(post, upstreams):
    said = {"message": {"content": '{"q0": "true", "q1": "fees"}'}}
    scripted = upstreams(lambda body: {"model": "gpt", "choices": [said], "usage": {"prompt_tokens": 9}})
    settings = DecisionSettings(upstream="judge", shape="chat", model="gpt")
    response = await DecisionRoutes(settings).handle(post(SYSTEM_ONE, JEV), scripted)
    assert json.loads(response.body)["answers"] == {
        "urgent": {"type": "noul", "noul": 1.0},
        "team": {"type": "choice", "choice": "fees", "confidence": 1.0, "probabilities": {"cards": 0.0, "fees": 1.0}},
        "only": {"type": "choice", "choice": "this", "confidence": 1.0, "probabilities": {"this": 1.0}},
    }
    headers = dict(response.headers)
    assert (headers[b"x-typesafe-request-id"], headers[b"x-smallfirst-probabilities"]) == (b"r1", b"uncalibrated")
    kept, answer = map(json.loads, (response.captured.request, response.captured.answer.body))
    assert list(kept["questions"]) == list(answer["answers"]) == ["urgent", "team"]


async def test_the_routes_own_shape_at_another_upstream_passes_whole(ticket, post, upstreams, luna):
    scripted = upstreams(luna)
    settings = DecisionSettings(upstream="judge", model="luna-2")
    response = await DecisionRoutes(settings).handle(post(DECISIONS, ticket), scripted)
    assert (scripted.body, scripted.asked[0][1]) == ({**ticket, "model": "luna-2"}, "judge")
    assert json.loads(response.body) == luna(ticket)
    assert response.captured.answer[2:] == (response.body, "judge", 12.0)


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"questions": []}, 400, b"invalid_request"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, 400, b"media_not_supported"),
    ],
)
async def test_what_cannot_be_translated_is_refused_before_the_upstream(ticket, post, upstreams, changed, status, code):
    settings = DecisionSettings(upstream="judge", shape="chat")
    scripted = upstreams(lambda body: pytest.fail("asked"))
    response = await DecisionRoutes(settings).handle(post(DECISIONS, {**ticket, **changed}), scripted)
    assert (response.status, dict(response.headers)[b"x-smallfirst-error"]) == (status, code)
    compressed = await DecisionRoutes(settings).handle(post(DECISIONS, b"\x28\xb5\x2f\xfd"), scripted)
    assert json.loads(compressed.body)["error"]["code"] == "invalid_json"


async def test_a_dead_upstream_is_an_error_in_the_routes_shape(post, upstreams):
    def dead(body):
        raise UpstreamFailed(502, "upstream_unreachable", "It cannot be reached.")

    settings = DecisionSettings(upstream="judge")
    response = await DecisionRoutes(settings).handle(post(SYSTEM_ONE, JEV), upstreams(dead))
    assert (response.status, json.loads(response.body)) == (502, {"detail": "It cannot be reached."})


class Scoring:
    """A model whose probabilities are given."""

    capabilities = frozenset({Capability.LABEL_PROBABILITIES})
    name = "team-small@1"

    def __init__(self, **shares):
        self.shares = shares

    async def probabilities(self, texts):
        assert texts == ["My card"]
        return [LabelScores(tuple(self.shares), list(self.shares.values()), 1, 0.0)]


def ruled(text="fees", alternatives=(), model=None, agreement=False):
    stages = (SimpleNamespace(model=model),) if model else ()
    router = SimpleNamespace(router=SimpleNamespace(stages=stages))
    task = SimpleNamespace(agreement=agreement, taken=SimpleNamespace(task="team"), router=router)
    small = text and Completion(
        text=text, answered_by=Scoring.name, latency_ms=1, cost_usd=0, alternatives=alternatives, prompt_tokens=3
    )
    return Ruling(task, SimpleNamespace(text="My card"), None, small or None, Answer(text))


@pytest.fixture
def question(ticket):
    return openai_decisions.read_request(ticket).questions[1]  # cards, fees, other


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
    assert answer.verdict.probabilities == pytest.approx(probabilities)
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


def answered(content, **message):
    return {"choices": [{"message": {"content": content, **message}}]}


def test_all_questions_stand_in_one_request_with_their_labels_as_a_schema(ticket):
    asked = openai_decisions.read_request(ticket)
    body = chat_request(asked, asked.questions[:2], "gpt")
    assert body["model"] == "gpt"
    assert body["messages"][1] == {"role": "user", "content": "My card is lost and nobody answers!"}
    assert "q0: It is urgent.\nIs this true" in body["messages"][0]["content"]
    assert "q1: Which team?\ncards\n" in body["messages"][0]["content"]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["q1"] == {"type": "string", "enum": ["cards", "fees", "other"]}
    assert schema["required"] == ["q0", "q1"]


def test_more_labels_than_a_schema_takes_are_listed_in_words_alone(ticket):
    choices = {"type": "choice", "instructions": "?", "choices": [{"value": f"{i}"} for i in range(255)]}
    asked = openai_decisions.read_request({**ticket, "questions": [choices] * 2})
    body = chat_request(asked, asked.questions, "gpt")
    assert body["response_format"]["json_schema"]["schema"]["properties"]["q1"] == {"type": "string"}


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ('{"q0": "true", "q1": "fees"}', ["true", "fees"]),
        ('```json\n{"q0": true, "q1": "fees"}\n```', ["true", "fees"]),
        ('{"q0": "false", "q1": "none of them"}', ["false", None]),
        ("I think it is fees", [None, None]),
        ('["true"]', [None, None]),
    ],
)
def test_a_label_is_certain_and_anything_else_a_refusal(ticket, content, labels):
    questions = openai_decisions.read_request(ticket).questions[:2]
    verdicts = chat_verdicts(answered(content), questions)
    found = [None if v.refused else q.labels[v.best] for v, q in zip(verdicts, questions, strict=True)]
    assert found == labels
    assert all(v.refused or max(v.probabilities) == 1.0 for v in verdicts)


def test_a_refusal_of_the_model_refuses_all_and_no_answer_is_an_error(ticket):
    questions = openai_decisions.read_request(ticket).questions
    refused = chat_verdicts(answered(None, refusal="I cannot"), questions)
    assert [verdict.refused for verdict in refused] == [True] * 3
    with pytest.raises(ValueError, match="a chat completion expected"):
        chat_verdicts({"choices": []}, questions)


def upstream(post, upstreams, **settings):
    chosen = DecisionSettings(upstream="judge", **settings) if settings else None
    return DecisionUpstream(chosen, post(DECISIONS, {}), upstreams)


async def test_without_settings_the_models_upstream_is_asked_in_the_routes_shape(ticket, post, upstreams, luna):
    scripted = upstreams(luna)
    asked = openai_decisions.read_request({**ticket, "prompt_cache_key": "k"})
    one = upstream(post, scripted)
    said = await one.ask(asked, asked.questions[1:2])
    request, target = scripted.asked[0]
    assert (request.path, target, one.is_chat) == (DECISIONS, "default", False)
    assert scripted.body == {
        **ticket,
        "prompt_cache_key": "k",
        "questions": [ticket["questions"][1]],
    }
    assert (said.model, said.usage.input_tokens) == ("luna-2026-10-06", 30)
    headers = [name for name, _ in request.headers]
    assert b"accept-encoding" not in headers  # the answer is read here
    assert b"authorization" in headers


async def test_a_chat_model_gets_the_extra_body(ticket, post, upstreams):
    content = '{"q0": "true", "q1": "cards", "q2": "calm"}'
    scripted = upstreams(lambda body: {"model": "gpt", "choices": [{"message": {"content": content}}]})
    asked = openai_decisions.read_request(ticket)
    one = upstream(post, scripted, shape="chat", extra_body={"temperature": 0})
    said = await one.ask(asked, asked.questions)
    assert (scripted.asked[0][0].path, scripted.body["temperature"]) == (CHAT, 0)
    assert [verdict.best for verdict in said.verdicts] == [0, 0, 0]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"answers": []}', b'{"answers": [1, 2, 3]}'])
async def test_an_answer_in_no_form_is_an_error_and_a_refusal_is_kept_as_it_came(ticket, post, upstreams, body):
    asked = openai_decisions.read_request(ticket)
    with pytest.raises(UpstreamFailed, match="in no form of its shape") as failed:
        await upstream(post, upstreams(lambda _: body)).ask(asked, asked.questions)
    assert failed.value.status == 502
    said = await upstream(post, upstreams(lambda _: (429, body))).ask(asked, asked.questions)
    assert (said.verdicts, said.answer.status, said.answer.body) == (None, 429, body)


def refused(shape, body):
    with pytest.raises(pydantic.ValidationError) as found:
        shape.read_request(body)
    return found.value


def test_openais_error_names_the_field_and_never_repeats_what_was_sent(ticket):
    ticket["questions"][1]["choices"] = [{"value": "secret"}]
    response = invalid_request(DECISIONS, refused(openai_decisions, {**ticket, "temperature": 0}))
    error = json.loads(response.body)["error"]
    assert (response.status, error["type"], error["param"]) == (400, "invalid_request_error", "questions[1].choices")
    assert "temperature: Extra inputs are not permitted" in error["message"]
    assert "secret" not in error["message"]
    assert dict(response.headers)[b"x-smallfirst-error"] == b"invalid_request"


def test_typesafes_error_has_places_from_the_body_on():
    response = invalid_request(SYSTEM_ONE, refused(systemone, {"model": "jev", "state": "x", "questions": {}}))
    (detail,) = json.loads(response.body)["detail"]
    assert (response.status, detail["loc"]) == (422, ["body", "questions"])
    assert json.loads(refuse(SYSTEM_ONE, ApiError(502, "It broke.")).body) == {"detail": "It broke."}
