"""MLflow's traces read as exchanges: exported ones, rows of a table, and those of a tracking store."""

from __future__ import annotations

import json

import pytest
from fixtures.logs import ASKED, MESSAGES, RESPONSE

from smallfirst.traffic.logs import mlflow_traces
from smallfirst.traffic.logs.read import read_logs
from smallfirst.traffic.messages import read_answer, read_prompt


def span(kind="CHAT_MODEL", **more):
    attributes = {
        "mlflow.spanType": kind,
        "mlflow.spanInputs": {"model": "gpt-4o-mini", "messages": MESSAGES},
        "mlflow.spanOutputs": RESPONSE,
        "mlflow.chat.tokenUsage": {"input_tokens": 30, "output_tokens": 3, "cache_read_input_tokens": 10},
        "mlflow.llm.cost": {"total_cost": 0.00002},
    } | more
    return {
        "trace_id": "t",
        "span_id": kind,
        "start_time_unix_nano": 1795773560000000000,
        "end_time_unix_nano": 1795773561000000000,
        "status": {"code": "STATUS_CODE_OK"},
        "attributes": {name: json.dumps(value) for name, value in attributes.items()},
    }


TRACE = {"info": {"trace_id": "tr-1"}, "data": {"spans": [span("CHAIN"), span()]}}


@pytest.mark.parametrize(
    "record", [TRACE, {"trace_id": "tr-1", "trace": json.dumps(TRACE)}, {"spans": TRACE["data"]["spans"]}]
)
def test_the_spans_of_models(read_records, record):
    (one,), problems = read_records(record)
    assert problems == []
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response).text == "lost_card"
    assert (one.prompt_tokens, one.cached_tokens, one.cost_usd, one.latency_ms) == (30, 10, 0.00002, 1000.0)


def test_langchain_s_messages(read_records):
    inputs = [[{"type": "system", "content": "File it."}, {"type": "human", "content": "My card is lost"}]]
    outputs = {"generations": [[{"text": "lost_card", "message": {"type": "ai", "content": "lost_card"}}]]}
    (one,), _ = read_records({"spans": [span(**{"mlflow.spanInputs": inputs, "mlflow.spanOutputs": outputs})]})
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response).text == "lost_card"


def test_a_trace_without_a_model_is_named(read_records):
    found, (problem,) = read_records({"spans": [span("TOOL")]})
    assert found == []
    assert "no span of a model" in problem.rule


def test_a_tracking_store_is_read_live(monkeypatch):
    monkeypatch.setattr(mlflow_traces, "read_traces", {"support": [json.dumps(TRACE)]}.get)
    found, problems = read_logs(["mlflow:support"])
    assert [one.source for one in found] == ["mlflow:support:1"]
    assert problems == []
