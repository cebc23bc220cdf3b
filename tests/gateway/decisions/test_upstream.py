"""An upstream is asked in the shape that it speaks, and answers that are none are errors."""

from __future__ import annotations

import pytest

from smallfirst.gateway.decisions.upstream import DecisionUpstream
from smallfirst.gateway.settings import DecisionSettings
from smallfirst.gateway.upstreams import UpstreamFailed
from smallfirst.traffic.decisions import openai_shape

DECISIONS, SYSTEM_ONE, CHAT = "/v1/decisions", "/v1/systemone", "/v1/chat/completions"


def upstream(post, upstreams, **settings):
    chosen = DecisionSettings(upstream="judge", **settings) if settings else None
    return DecisionUpstream(chosen, post(DECISIONS, {}), upstreams)


async def test_without_settings_the_models_upstream_is_asked_in_the_routes_shape(ticket, post, upstreams, luna):
    scripted = upstreams(luna)
    asked = openai_shape.read_request({**ticket, "prompt_cache_key": "k"})
    one = upstream(post, scripted)
    said = await one.ask(asked, asked.questions[1:2])
    request, target = scripted.asked[0]
    assert (request.path, target, one.speaks_route, one.worth) == (DECISIONS, "default", True, "upstream")
    assert scripted.body == {
        **ticket,
        "prompt_cache_key": "k",
        "questions": [ticket["questions"][1]],
    }
    assert (said.model, said.usage.input_tokens) == ("luna-2026-10-06", 30)
    headers = [name for name, _ in request.headers]
    assert b"accept-encoding" not in headers  # the answer is read here
    assert b"authorization" in headers


async def test_another_shape_is_translated(ticket, post, upstreams):
    scripted = upstreams(
        lambda body: {
            "model": "jev-1",
            "answers": {"q0": {"type": "noul", "noul": 0.25}},
            "usage": {"input_tokens": 7, "output_tokens": 1},
        }
    )
    asked = openai_shape.read_request(ticket)
    said = await upstream(post, scripted, shape="systemone", model="jev-latest").ask(asked, asked.questions[:1])
    request, target = scripted.asked[0]
    assert (request.path, target) == (SYSTEM_ONE, "judge")
    assert scripted.body["questions"] == {"q0": {"type": "noul", "instructions": "It is urgent."}}
    assert said.verdicts[0].probabilities == (0.25, 0.75)


async def test_a_chat_model_gets_the_extra_body(ticket, post, upstreams):
    content = '{"q0": "true", "q1": "cards", "q2": "calm"}'
    scripted = upstreams(lambda body: {"model": "gpt", "choices": [{"message": {"content": content}}]})
    asked = openai_shape.read_request(ticket)
    one = upstream(post, scripted, shape="chat", extra_body={"temperature": 0})
    said = await one.ask(asked, asked.questions)
    assert (scripted.asked[0][0].path, one.worth, scripted.body["temperature"]) == (CHAT, "uncalibrated", 0)
    assert [verdict.best for verdict in said.verdicts] == [0, 0, 0]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"answers": []}', b'{"answers": [1, 2, 3]}'])
async def test_an_answer_in_no_form_is_an_error_and_a_refusal_is_kept_as_it_came(ticket, post, upstreams, body):
    asked = openai_shape.read_request(ticket)
    with pytest.raises(UpstreamFailed, match="in no form of its shape") as failed:
        await upstream(post, upstreams(lambda _: body)).ask(asked, asked.questions)
    assert failed.value.status == 502
    said = await upstream(post, upstreams(lambda _: (429, body))).ask(asked, asked.questions)
    assert (said.verdicts, said.answer.status, said.answer.body) == (None, 429, body)
