"""Generations of Langfuse read as exchanges, from its API and from its export to blob storage."""

from __future__ import annotations

import json

import pytest
from fixtures.logs import ASKED, MESSAGES

from smallfirst.traffic.messages import read_answer, read_prompt

API = {
    "id": "o1",
    "traceId": "t1",
    "type": "GENERATION",
    "startTime": "2026-04-04T06:21:09.000Z",
    "endTime": "2026-04-04T06:21:10.500Z",
    "completionStartTime": "2026-04-04T06:21:09.400Z",
    "model": "gpt-4o-mini",
    "modelParameters": {"temperature": 0},
    "input": {"messages": MESSAGES, "tools": None},
    "output": {"role": "assistant", "content": "lost_card"},
    "usageDetails": {"input": 20, "input_cached_tokens": 10, "output": 3, "output_reasoning_tokens": 4, "total": 37},
    "costDetails": {"total": 0.00001},
    "level": "DEFAULT",
}
BLOB = {
    "id": "o1",
    "trace_id": "t1",
    "type": "GENERATION",
    "start_time": "2026-04-04 06:21:09.000000",
    "end_time": "2026-04-04 06:21:10.500000",
    "completion_start_time": "2026-04-04 06:21:09.400000",
    "provided_model_name": "gpt-4o-mini",
    "model_parameters": '{"temperature": 0}',
    "input": json.dumps(MESSAGES),
    "output": "lost_card",
    "usage_details": {"input": 20, "input_cached_tokens": 10, "output": 3, "output_reasoning_tokens": 4},
    "total_cost": 0.00001,
}


@pytest.mark.parametrize("record", [API, BLOB, {"id": "t1", "observations": [{**API, "type": "SPAN"}, API]}])
def test_a_generation(read_records, record):
    (one,), problems = read_records(record)
    assert problems == []
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response).text == "lost_card"
    assert (one.model, one.request["temperature"]) == ("gpt-4o-mini", 0)
    assert (one.prompt_tokens, one.cached_tokens, one.completion_tokens, one.cost_usd) == (30, 10, 7, 0.00001)
    assert (one.latency_ms, one.first_token_ms) == (1500.0, 400.0)


def test_an_export_that_overlaps_another_counts_once(read_records):
    found, _ = read_records(API, API)
    assert len(found) == 1


def test_spans_are_no_exchanges_and_errors_have_a_status(read_records):
    failed = {**API, "output": None, "level": "ERROR", "statusMessage": "rate limit"}
    (one,), problems = read_records({**API, "type": "SPAN"}, failed)
    assert problems == []
    assert (one.status, one.response) == (500, {"error": {"message": "rate limit"}})
