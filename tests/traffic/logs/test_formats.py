"""OpenAI's bodies, flywheel records and chats read as exchanges."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from fixtures.logs import ASKED, MESSAGES, RESPONSE

from smallfirst.traffic.logs import formats
from smallfirst.traffic.logs.read import read_logs
from smallfirst.traffic.wire import ModelAnswer, ToolCall, read_answer, read_prompt

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
    assert problem.rule == "no answer: was the content of messages stored?"


CELL = '"' + json.dumps(MESSAGES).replace('"', '""') + '"'


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("Prompt,System prompt,Response", '"My card is lost","File it.","lost_card"'),
        ("user,system,assistant", '"My card is lost","File it.","lost_card"'),
        ("request,answer", f"{CELL},lost_card"),
    ],
)
def test_csv(read_records, header, row):
    (one, other), problems = read_records(header, row, row.replace("lost_card", "other"), name="log.csv")
    assert problems == []
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response).text == "lost_card"
    assert not one.timed
    assert one.at < other.at


def test_columns_of_the_bill(read_records):
    text = "question,answer,model,cost,input_tokens,timestamp", "a,b,mine,0.5,7,2026-04-04T00:00:00"
    (one,), _ = read_records(*text, name="log.csv")
    assert (one.model, one.cost_usd, one.prompt_tokens, one.timed) == ("mine", 0.5, 7, True)


def test_a_row_without_an_answer_is_named(read_records):
    found, problems = read_records("question,answer", "a,", "b,c", name="log.csv")
    assert len(found) == 1
    assert [(problem.line, problem.rule) for problem in problems] == [
        (2, "no answer: was the content of messages stored?")
    ]


def asked(id):
    return {
        "custom_id": id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": MESSAGES},
    }


def answered(id, **more):
    return {"id": "b", "custom_id": id, "response": {"status_code": 200, "body": RESPONSE}, "error": None} | more


def test_openai_batches(read_records):
    found, problems = read_records(asked("a"), answered("b"), answered("a"), asked("b"), asked("c"), answered("d"))
    assert [one.id for one in found] == ["a", "b"]
    assert read_prompt(found[0].route, found[0].request).turns == ASKED
    assert read_answer(found[0].route, found[0].response).text == "lost_card"
    assert [problem.line for problem in problems] == [5, 6]


def test_anthropic_batches(read_records):
    params = {"model": "claude", "system": "File it.", "messages": [MESSAGES[1]]}
    message = {"type": "message", "content": [{"type": "text", "text": "lost_card"}], "usage": {"input_tokens": 5}}
    result = {"custom_id": "a", "result": {"type": "succeeded", "message": message}}
    (one,), _ = read_records({"custom_id": "a", "params": params}, result)
    assert one.route == "/v1/messages"
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response).text == "lost_card"


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
    assert one.latency_ms == 1500.0


def test_spans_are_no_exchanges_and_errors_have_a_status(read_records):
    failed = {**API, "output": None, "level": "ERROR", "statusMessage": "rate limit"}
    (one,), problems = read_records({**API, "type": "SPAN"}, failed)
    assert problems == []
    assert (one.status, one.response) == (500, {"error": {"message": "rate limit"}})


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
    assert "was the content of messages stored?" in problem.rule


def test_a_failed_request(read_records):
    (one,), _ = read_records({**ROW, "messages": MESSAGES, "response": "{}", "status": "failure"})
    assert one.status == 500


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


def test_a_tracking_store_is_read_live(monkeypatch):
    monkeypatch.setattr(formats, "read_traces", {"support": [json.dumps(TRACE)]}.get)
    found, problems = read_logs(["mlflow:support"])
    assert [one.source for one in found] == ["mlflow:support:1"]
    assert problems == []


# OpenTelemetry

TOOL = {"type": "function", "function": {"name": "file", "parameters": {}}}
CALL = '{"label": "lost"}'


def any_value(value):
    if isinstance(value, dict):
        return {"kvlistValue": {"values": attributes(value)}}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def attributes(values):
    return [{"key": key, "value": any_value(value)} for key, value in values.items()]


def spans(*given, **more):
    made = [
        {"spanId": f"s{i}", "startTimeUnixNano": "1764201600000000000", "endTimeUnixNano": "1764201601000000000"}
        | {"attributes": attributes(values)}
        | more
        for i, values in enumerate(given)
    ]
    return {"resourceSpans": [{"scopeSpans": [{"spans": made}]}]}


BASE = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
    "gen_ai.usage.input_tokens": 30,
    "gen_ai.usage.output_tokens": 3,
}
IN = json.dumps([{"role": m["role"], "parts": [{"type": "text", "content": m["content"]}]} for m in MESSAGES])
OUT = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "lost_card"}], "finish_reason": "stop"}])
USER_IN = json.dumps(json.loads(IN)[1:])
NUMBERED = {f"gen_ai.prompt.{i}.{key}": value for i, m in enumerate(MESSAGES) for key, value in m.items()}
OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "gpt-4o-mini-2024-07-18",
    "llm.token_count.prompt": 30,
    "llm.token_count.completion": 3,
}


@pytest.mark.parametrize(
    "records",
    [
        [spans(BASE | {"gen_ai.input.messages": IN, "gen_ai.output.messages": OUT})],
        [
            spans(
                BASE
                | {
                    "gen_ai.input.messages": USER_IN,
                    "gen_ai.output.messages": OUT,
                    "gen_ai.system_instructions": '[{"type": "text", "content": "File it."}]',
                }
            )
        ],
        [spans(BASE | NUMBERED | {"gen_ai.completion.0.content": "lost_card"})],
        [
            spans(
                OPENINFERENCE
                | {
                    "input.value": json.dumps({"model": "gpt-4o-mini", "messages": MESSAGES}),
                    "output.value": json.dumps(RESPONSE),
                }
            )
        ],
        [
            {
                "name": "chat",
                "context": {"span_id": "0x1"},
                "start_time": "2025-11-27T00:00:00Z",
                "end_time": "2025-11-27T00:00:01Z",
                "attributes": BASE | {"gen_ai.input.messages": IN, "gen_ai.output.messages": OUT},
            }
        ],
    ],
)
def test_one_exchange_in_every_convention(read_records, records):
    (one,), problems = read_records(*records)
    assert problems == []
    assert read_prompt(one.route, one.request).turns == ASKED
    assert read_answer(one.route, one.response) == ModelAnswer("lost_card")
    assert (one.model, one.answered_by) == ("gpt-4o-mini", "gpt-4o-mini-2024-07-18")
    assert (one.prompt_tokens, one.completion_tokens, one.latency_ms) == (30, 3, 1000.0)


@pytest.mark.parametrize(
    "given",
    [
        BASE
        | {
            "gen_ai.input.messages": IN,
            "gen_ai.tool.definitions": '[{"type": "function", "name": "file", "parameters": {}}]',
            "gen_ai.output.messages": json.dumps(
                [{"role": "assistant", "parts": [{"type": "tool_call", "name": "file", "arguments": json.loads(CALL)}]}]
            ),
        },
        OPENINFERENCE
        | {f"llm.input_messages.{i}.message.{k}": v for i, m in enumerate(MESSAGES) for k, v in m.items()}
        | {
            "llm.tools.0.tool.json_schema": json.dumps(TOOL),
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "file",
            "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": CALL,
        },
    ],
    ids=["attributes", "openinference"],
)
def test_tools_and_calls(read_records, given):
    (one,), _ = read_records(spans(given))
    assert read_answer(one.route, one.response) == ModelAnswer("", (ToolCall("file", CALL),), "tool_calls")
    assert one.request["tools"] == [TOOL]


def test_spans_of_tools_are_none_and_spans_without_content_are_named(read_records):
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.request.model": "m"}
    found, problems = read_records(spans(tool, BASE))
    assert found == []
    (problem,) = problems
    assert "was the content of messages stored?" in problem.rule
