"""GenAI spans of four conventions read as the same exchange."""

from __future__ import annotations

import json

import pytest
from fixtures.logs import ASKED, MESSAGES, RESPONSE

from smallfirst.traffic.wire.dialects import read_answer, read_prompt
from smallfirst.traffic.wire.messages import Answer, ToolCall

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


def logs(span_id, *events):
    made = [{"spanId": span_id, "eventName": name, "body": any_value(body)} for name, body in events]
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": made}]}]}


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
SAID = [(f"gen_ai.{m['role']}.message", {"content": m["content"]}) for m in MESSAGES]
CHOICE = ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"content": "lost_card"}})
EVENTS = [{"name": name, "attributes": attributes(body)} for name, body in (*SAID, CHOICE)]
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
        [spans(BASE, events=EVENTS)],
        [spans(BASE), logs("s0", *SAID, CHOICE)],
        [logs("s0", *SAID, CHOICE), spans(BASE)],
        [
            spans(BASE),
            logs(
                "s0",
                (
                    "gen_ai.client.inference.operation.details",
                    {"gen_ai.input.messages": json.loads(IN), "gen_ai.output.messages": json.loads(OUT)},
                ),
            ),
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
    assert read_answer(one.route, one.response) == Answer("lost_card")
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
    assert read_answer(one.route, one.response) == Answer("", (ToolCall("file", CALL),), "tool_calls")
    assert one.request["tools"] == [TOOL]


def test_spans_of_tools_are_none_and_spans_without_content_are_named(read_records):
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.request.model": "m"}
    found, problems = read_records(spans(tool, BASE), logs("s1", ("gen_ai.user.message", {}), ("gen_ai.choice", {})))
    assert found == []
    (problem,) = problems
    assert "was the content of messages captured?" in problem.rule


def test_a_failed_call_has_a_status(read_records):
    failed = BASE | {"gen_ai.input.messages": IN, "error.type": "RateLimitError"}
    (one,), _ = read_records(spans(failed))
    assert (one.status, one.response["error"]["message"]) == (500, "RateLimitError")
