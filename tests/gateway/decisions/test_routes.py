"""An upstream of another shape answers in the shape in which it was asked."""

from __future__ import annotations

import json

import pytest

from smallfirst.gateway.decisions.routes import DecisionRoutes
from smallfirst.gateway.decisions.settings import DecisionSettings
from smallfirst.gateway.upstreams import UpstreamFailed

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


async def test_without_settings_all_passes_as_it_is(ticket, post, upstreams, luna):
    scripted = upstreams(luna)
    assert await DecisionRoutes().handle(post(DECISIONS, ticket), scripted) is None
    assert await DecisionRoutes().handle(post(DECISIONS, {"newer": "form"}), scripted) is None
    assert await DecisionRoutes().handle(post(DECISIONS, b"(compressed)"), scripted) is None
    assert not scripted.asked


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
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
            400,
            b"media_not_supported",
        ),
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
