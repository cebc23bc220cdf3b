"""LiteLLM's spend logs and payloads read as exchanges with the spend that they record."""

from __future__ import annotations

import json

import pytest
from fixtures.logs import ASKED, MESSAGES, RESPONSE

from smallfirst.traffic.messages import read_answer, read_prompt

ROW = {
    "request_id": "r1",
    "call_type": "acompletion",
    "spend": 0.00002,
    "prompt_tokens": 30,
    "completion_tokens": 3,
    "startTime": "2026-04-04T06:21:09+00:00",
    "endTime": "2026-04-04T06:21:10+00:00",
    "model": "openai/gpt-4o-mini",
    "model_group": "gpt-4o-mini",
    "team_id": "shop",
    "metadata": json.dumps({"usage_object": {"prompt_tokens_details": {"cached_tokens": 10}}}),
    "status": "success",
}
PAYLOAD = {
    "id": "chatcmpl-1",
    "litellm_call_id": "r1",
    "call_type": "completion",
    "response_cost": 0.00002,
    "startTime": 1795773572.0,
    "endTime": 1795773573.0,
    "model": "gpt-4o-mini",
    "model_group": "",
    "metadata": {"usage_object": {"prompt_tokens_details": {"cached_tokens": 10}}},
    "team_id": "shop",
    "messages": MESSAGES,
    "response": RESPONSE,
    "model_parameters": {"temperature": 0},
    "prompt_tokens": 30,
    "completion_tokens": 3,
}


@pytest.mark.parametrize(
    "record",
    [
        {**ROW, "messages": MESSAGES, "response": RESPONSE},
        {
            **ROW,
            "messages": "{}",
            "proxy_server_request": json.dumps({"messages": MESSAGES}),
            "response": json.dumps(RESPONSE),
        },
        PAYLOAD,
    ],
)
def test_a_row_with_its_texts(read_records, record):
    (one,), problems = read_records(record)
    assert problems == []
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response).text == "lost_card"
    assert (one.id, one.model, one.answered_by, one.tenant) == ("r1", "gpt-4o-mini", "gpt-4o-mini-2024-07-18", "shop")
    assert (one.prompt_tokens, one.cached_tokens, one.cost_usd, one.latency_ms) == (30, 10, 0.00002, 1000.0)


def test_a_row_without_texts_says_which_setting_stores_them(read_records):
    found, (problem,) = read_records({**ROW, "messages": "{}", "response": "{}"})
    assert found == []
    assert "store_prompts_in_spend_logs" in problem.rule


def test_a_failed_request(read_records):
    (one,), _ = read_records({**ROW, "messages": MESSAGES, "response": "{}", "status": "failure"})
    assert one.status == 500
