"""Each question is answered by its task or by one upstream call, in the shape in which it was asked."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from smallfirst.gateway.decisions.routes import DecisionRoutes
from smallfirst.gateway.settings import DecisionSettings
from smallfirst.gateway.takeover.live_task import Ruling
from smallfirst.gateway.upstreams import UpstreamFailed
from smallfirst.models.protocol import Completion
from smallfirst.traffic.messages import Answer, read_answer

DECISIONS, SYSTEM_ONE = "/v1/decisions", "/v1/systemone"
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
        return None if "urgent" in self.wording else (self, prompt.turns[1].text)

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


async def test_system_one_is_answered_by_an_upstream_of_openais_shape(post, upstreams, luna):
    scripted = upstreams(luna)
    settings = DecisionSettings(upstream="judge", model="gpt-6-luna")
    response = await DecisionRoutes(settings).handle(post(SYSTEM_ONE, JEV), scripted)
    assert scripted.body == {
        "model": "gpt-6-luna",
        "input": [{"role": "user", "content": [{"type": "input_json", "data": {"ticket": "My card is lost"}}]}],
        "questions": [
            {"type": "predicate", "name": "urgent", "instructions": "It is urgent."},
            {
                "type": "choice",
                "name": "team",
                "instructions": "Which team?",
                "choices": [{"value": "cards"}, {"value": "fees"}],
            },
        ],
    }
    assert json.loads(response.body)["answers"] == {
        "urgent": {"type": "noul", "noul": 0.9},
        "team": {
            "type": "choice",
            "choice": "cards",
            "confidence": 0.7,
            "probabilities": {"cards": 0.8, "fees": 0.2},
        },
        "only": {"type": "choice", "choice": "this", "confidence": 1.0, "probabilities": {"this": 1.0}},
    }
    assert dict(response.headers)[b"x-typesafe-request-id"] == b"r1"
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
