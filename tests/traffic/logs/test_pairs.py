"""OpenAI's bodies, flywheel records and chats read as exchanges."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from fixtures.logs import ASKED, MESSAGES, RESPONSE

from smallfirst.traffic.messages import read_answer, read_prompt

REQUEST = {"model": "gpt-4o-mini", "messages": MESSAGES, "temperature": 0}
ANSWER = {"role": "assistant", "content": "lost_card"}


@pytest.mark.parametrize(
    "record",
    [
        {"request": REQUEST, "response": RESPONSE},
        {"request": {"method": "POST", "url": "/v1/chat/completions", "body": REQUEST}, "response": {"body": RESPONSE}},
        {"request_body": REQUEST, "response_body": RESPONSE},
        {**REQUEST, **{key: RESPONSE[key] for key in ("choices", "usage")}},
        {"timestamp": 1764201600, "workload_id": "w", "client_id": "shop", "request": REQUEST, "response": RESPONSE},
        {"model": "gpt-4o-mini", "messages": [*MESSAGES, ANSWER]},
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in (*MESSAGES, ANSWER)]},
        {"kwargs": REQUEST, "output": "lost_card"},
        {"messages": MESSAGES, "received": {"http": RESPONSE}},
        {"user": "u1", "call": {"sent": REQUEST, "received": {"http": RESPONSE}}, "result": "ok"},
    ],
)
def test_one_exchange_in_many_logs(read_records, record):
    (one,), problems = read_records(record)
    assert problems == []
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response).text == "lost_card"
    assert one.route == "/v1/chat/completions"


def test_a_flywheel_record_has_its_time_tenant_model_and_bill(read_records):
    (one,), _ = read_records({"timestamp": 1764201601, "client_id": "shop", "request": REQUEST, "response": RESPONSE})
    assert one.at == datetime(2025, 11, 27, 0, 0, 1, tzinfo=UTC)
    assert (one.tenant, one.model, one.answered_by) == ("shop", "gpt-4o-mini", "gpt-4o-mini-2024-07-18")
    assert (one.prompt_tokens, one.cached_tokens, one.completion_tokens) == (30, 10, 3)
    assert one.timed


def test_a_row_of_an_inference_table(read_records):
    row = {"databricks_request_id": "r1", "timestamp_ms": 1764201601000, "execution_time_ms": 420, "status_code": 200}
    (one,), _ = read_records({**row, "request": json.dumps(REQUEST), "response": json.dumps(RESPONSE)})
    assert (one.id, one.latency_ms, one.timed) == ("r1", 420.0, True)
    assert one.at == datetime(2025, 11, 27, 0, 0, 1, tzinfo=UTC)


def test_a_failed_request_keeps_its_status(read_records):
    failed = {"request": REQUEST, "response": {"error": {"message": "busy"}}, "status_code": 429}
    (one,), _ = read_records(failed)
    assert one.status == 429
    assert read_answer(one.route, one.response) is None


def test_a_chat_without_an_answer_is_named(read_records):
    found, (problem,) = read_records({"messages": MESSAGES})
    assert found == []
    assert problem.rule == "no answer"
