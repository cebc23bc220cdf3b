"""One exchange in the records of many products: the same request and answer, with time, bill and names."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from fixtures.logs import ASKED, MESSAGES, RESPONSE, ReadRecords

from smallfirst.traffic.logs import formats
from smallfirst.traffic.logs.read import read_logs
from smallfirst.traffic.wire import ModelAnswer, ToolCall, read_answer, read_prompt

NO_CONTENT = "was the content of messages stored?"
REQUEST = {"model": "gpt-4o-mini", "messages": MESSAGES, "temperature": 0}
ANSWER = {"role": "assistant", "content": "lost_card"}
BILLED = {"prompt_tokens": 30, "cached_tokens": 10, "completion_tokens": 3}
NAMED = {"model": "gpt-4o-mini", "answered_by": "gpt-4o-mini-2024-07-18"}
AT = datetime(2025, 11, 27, tzinfo=UTC)
NANOSECONDS = ("1764201600000000000", "1764201601000000000")
PAIR = {"request": REQUEST, "response": RESPONSE}
FROM_TO = [{"from": m["role"], "value": m["content"]} for m in (*MESSAGES, ANSWER)]
BATCH = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": REQUEST}
BATCHED = {"id": "b", "custom_id": "a", "response": {"status_code": 200, "body": RESPONSE}, "error": None}
CLAUDE = {"custom_id": "a", "params": {"model": "claude", "system": "File it.", "messages": [MESSAGES[1]]}}
CLAUDE_SAID = {
    "custom_id": "a",
    "result": {"type": "succeeded", "message": {"type": "message", "content": [{"type": "text", "text": "lost_card"}]}},
}
CELL = '"' + json.dumps(MESSAGES).replace('"', '""') + '"'

LANGFUSE = {
    "id": "o1", "traceId": "t1", "type": "GENERATION", "startTime": "2025-11-27T00:00:00.000Z",
    "endTime": "2025-11-27T00:00:01.500Z", "model": "gpt-4o-mini", "modelParameters": {"temperature": 0},
    "input": {"messages": MESSAGES, "tools": None}, "output": ANSWER,
    "usageDetails": {"input": 20, "input_cached_tokens": 10, "output": 3, "output_reasoning_tokens": 4, "total": 37},
    "costDetails": {"total": 0.00001}, "level": "DEFAULT",
}  # fmt: skip
LANGFUSE_EXPORT = {
    "id": "o1", "trace_id": "t1", "type": "GENERATION", "start_time": "2025-11-27 00:00:00.000000",
    "end_time": "2025-11-27 00:00:01.500000", "provided_model_name": "gpt-4o-mini",
    "model_parameters": '{"temperature": 0}', "input": json.dumps(MESSAGES), "output": "lost_card",
    "usage_details": {"input": 20, "input_cached_tokens": 10, "output": 3, "output_reasoning_tokens": 4},
    "total_cost": 0.00001,
}  # fmt: skip
OF_LANGFUSE = {
    "model": "gpt-4o-mini", "prompt_tokens": 30, "cached_tokens": 10, "completion_tokens": 7, "cost_usd": 0.00001,
    "latency_ms": 1500.0, "at": AT, "trace": "t1",
}  # fmt: skip
LITELLM = {
    "request_id": "r1", "call_type": "acompletion", "spend": 0.00002, "prompt_tokens": 30, "completion_tokens": 3,
    "startTime": "2025-11-27T00:00:00+00:00", "endTime": "2025-11-27T00:00:01+00:00", "model": "openai/gpt-4o-mini",
    "model_group": "gpt-4o-mini", "team_id": "shop",
    "metadata": json.dumps({"usage_object": {"prompt_tokens_details": {"cached_tokens": 10}}}), "status": "success",
}  # fmt: skip
LITELLM_LOGGED = {
    "id": "chatcmpl-1", "litellm_call_id": "r1", "call_type": "completion", "response_cost": 0.00002,
    "startTime": 1764201600.0, "endTime": 1764201601.0, "model": "gpt-4o-mini", "model_group": "",
    "metadata": {"usage_object": {"prompt_tokens_details": {"cached_tokens": 10}}}, "team_id": "shop",
    "messages": MESSAGES, "response": RESPONSE, "model_parameters": {"temperature": 0}, "prompt_tokens": 30,
    "completion_tokens": 3,
}  # fmt: skip
OF_LITELLM = BILLED | NAMED | {"id": "r1", "tenant": "shop", "cost_usd": 0.00002, "latency_ms": 1000.0, "at": AT}


def mlflow_span(kind: str) -> dict[str, Any]:
    attributes = {
        "mlflow.spanType": kind,
        "mlflow.spanInputs": {"model": "gpt-4o-mini", "messages": MESSAGES},
        "mlflow.spanOutputs": RESPONSE,
        "mlflow.chat.tokenUsage": {"input_tokens": 30, "output_tokens": 3, "cache_read_input_tokens": 10},
        "mlflow.llm.cost": {"total_cost": 0.00002},
    }
    return {
        "trace_id": "t",
        "span_id": kind,
        "start_time_unix_nano": int(NANOSECONDS[0]),
        "end_time_unix_nano": int(NANOSECONDS[1]),
        "status": {"code": "STATUS_CODE_OK"},
        "attributes": {name: json.dumps(value) for name, value in attributes.items()},
    }


MLFLOW = {"info": {"trace_id": "tr-1"}, "data": {"spans": [mlflow_span("CHAIN"), mlflow_span("CHAT_MODEL")]}}
OF_MLFLOW = BILLED | {"trace": "t", "cost_usd": 0.00002, "latency_ms": 1000.0, "at": AT}


def any_value(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    times = dict(zip(("startTimeUnixNano", "endTimeUnixNano"), NANOSECONDS, strict=True))
    made = [
        {
            "traceId": "t",
            "spanId": f"s{i}",
            **times,
            "attributes": [{"key": k, "value": any_value(v)} for k, v in values.items()],
        }
        for i, values in enumerate(spans)
    ]
    return {"resourceSpans": [{"scopeSpans": [{"spans": made}]}]}


def parts(*said: tuple[str, dict[str, Any]]) -> str:
    return json.dumps([{"role": role, "parts": [part]} for role, part in said])


IN = [(m["role"], {"type": "text", "content": m["content"]}) for m in MESSAGES]
OUT = parts(("assistant", {"type": "text", "content": "lost_card"}))
GENAI = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
    "gen_ai.usage.input_tokens": 30,
    "gen_ai.usage.output_tokens": 3,
}
SPAN = GENAI | {"gen_ai.input.messages": parts(*IN), "gen_ai.output.messages": OUT}
APART = {"gen_ai.input.messages": parts(IN[1]), "gen_ai.system_instructions": json.dumps([IN[0][1]])}
OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "gpt-4o-mini-2024-07-18",
    "llm.token_count.prompt": 30,
    "llm.token_count.completion": 3,
    "input.value": json.dumps({"model": "gpt-4o-mini", "messages": MESSAGES}),
    "output.value": json.dumps(RESPONSE),
}
NUMBERED = {f"gen_ai.prompt.{i}.{key}": value for i, m in enumerate(MESSAGES) for key, value in m.items()}
NUMBERED_INFERENCE = {key: value for key, value in OPENINFERENCE.items() if "value" not in key} | {
    f"llm.{side}_messages.{i}.message.{key}": value
    for side, said in (("input", MESSAGES), ("output", [ANSWER]))
    for i, message in enumerate(said)
    for key, value in message.items()
}
CONSOLE = {
    "name": "chat",
    "context": {"span_id": "0x1", "trace_id": "t"},
    "start_time": "2025-11-27T00:00:00Z",
    "end_time": "2025-11-27T00:00:01Z",
    "attributes": SPAN,
}
AGENTS_DATA = {
    "type": "generation", "input": MESSAGES, "output": [ANSWER],
    "model": "gpt-4o-mini", "model_config": {"temperature": 0},
    "usage": {"input_tokens": 30, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 10}},
}  # fmt: skip
AGENTS_TIMES = {"started_at": "2025-11-27T00:00:00+00:00", "ended_at": "2025-11-27T00:00:01+00:00", "error": None}
AGENTS_WRITTEN = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "lost_card"}]}
AGENTS_BODY = {"object": "response", "model": "gpt-4o-mini", "instructions": "File it.", "output": [AGENTS_WRITTEN]}
AGENTS_OWN = {"type": "response", "response_id": "resp_1", "input": [MESSAGES[1]], "response": AGENTS_BODY}
OF_AGENTS = {"model": "gpt-4o-mini", "trace": "trace_1", "latency_ms": 1000.0, "at": AT}


def agents_span(data: dict[str, Any]) -> dict[str, Any]:
    return AGENTS_TIMES | {"object": "trace.span", "id": "span_1", "trace_id": "trace_1", "span_data": data}


def langchain(kind: str, **fields: Any) -> dict[str, Any]:
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", kind], "kwargs": fields}


USAGE = {"input_tokens": 30, "output_tokens": 3, "input_token_details": {"cache_read": 10}}
ANSWERED = {
    "content": "lost_card",
    "response_metadata": {"model_name": "gpt-4o-mini-2024-07-18"},
    "usage_metadata": USAGE,
}
GENERATED = {"text": "lost_card", "type": "ChatGeneration", "message": langchain("AIMessage", **ANSWERED)}
CONVERSED = [langchain("SystemMessage", content="File it.", type="system"), langchain("HumanMessage", **MESSAGES[1])]
PARAMETERS = {"model": "gpt-4o-mini", "temperature": 0}
LANGSMITH = {
    "id": "r1", "trace_id": "trace_1", "run_type": "llm",
    "start_time": "2025-11-27T00:00:00", "end_time": "2025-11-27T00:00:01",
    "inputs": {"messages": [CONVERSED]}, "outputs": {"generations": [[GENERATED]]},
    "extra": {"invocation_params": PARAMETERS, "metadata": {"langgraph_node": "file"}},
}  # fmt: skip
LANGSMITH_TREE = {**LANGSMITH, "run_type": "chain", "child_runs": [LANGSMITH]}
OF_GRAPH = BILLED | NAMED | {"trace": "trace_1", "step": "file", "latency_ms": 1000.0, "at": AT}
OF_SPAN = NAMED | {"trace": "t", "prompt_tokens": 30, "completion_tokens": 3, "latency_ms": 1000.0, "at": AT}
INFERENCE_TABLE = {
    "databricks_request_id": "r1",
    "timestamp_ms": 1764201600000,
    "execution_time_ms": 420,
    "status_code": 200,
    "request": json.dumps(REQUEST),
    "response": json.dumps(RESPONSE),
}
FLYWHEEL = PAIR | {"timestamp": 1764201600, "workload_id": "w", "client_id": "shop"}
BODIES = {"request": {"method": "POST", "url": "/v1/chat/completions", "body": REQUEST}, "response": {"body": RESPONSE}}
STORED_AS_SENT = {"proxy_server_request": json.dumps({"messages": MESSAGES}), "response": json.dumps(RESPONSE)}

CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "pair": ([PAIR], BILLED | NAMED),
    "bodies": ([BODIES], BILLED | NAMED),
    "named bodies": ([{"request_body": REQUEST, "response_body": RESPONSE}], {}),
    "both bodies in one": ([{**REQUEST, **{key: RESPONSE[key] for key in ("choices", "usage")}}], {}),
    "flywheel": ([FLYWHEEL], BILLED | NAMED | {"at": AT, "tenant": "shop", "timed": True}),
    "inference table": ([INFERENCE_TABLE], {"id": "r1", "latency_ms": 420.0, "at": AT, "timed": True}),
    "chat": ([{"model": "gpt-4o-mini", "messages": [*MESSAGES, ANSWER]}], {"model": "gpt-4o-mini"}),
    "conversations": ([{"conversations": FROM_TO}], {}),
    "arguments and output": ([{"kwargs": REQUEST, "output": "lost_card"}], {}),
    "reasoning beside the answer": (
        [{"req": REQUEST, "res": {"output": [{"type": "reasoning"}, AGENTS_WRITTEN]}}],
        {"route": "/v1/responses"},
    ),
    "preferred output": ([{"input": REQUEST, "preferred_output": [ANSWER]}], {}),
    "ideal": ([{"input": MESSAGES, "ideal": "lost_card"}], {}),
    "nested answer": ([{"messages": MESSAGES, "received": {"http": RESPONSE}}], {}),
    "nested": ([{"user": "u1", "call": {"sent": REQUEST, "received": {"http": RESPONSE}}, "result": "ok"}], {}),
    "table": (["Prompt,System prompt,Response", '"My card is lost","File it.","lost_card"'], {"timed": False}),
    "table of roles": (["user,system,assistant", '"My card is lost","File it.","lost_card"'], {}),
    "table of JSON": (["request,answer", f"{CELL},lost_card"], {}),
    "billed table": (
        ["request,answer,model,cost,input_tokens,timestamp", f"{CELL},lost_card,mine,0.5,7,2025-11-27T00:00:00"],
        {"model": "mine", "cost_usd": 0.5, "prompt_tokens": 7, "at": AT, "timed": True},
    ),
    "batch": ([BATCH, BATCHED], {"id": "a", "tier": "batch"}),
    "batch, answered first": ([BATCHED, BATCH], {"id": "a", "tier": "batch"}),
    "batch of Anthropic": ([CLAUDE, CLAUDE_SAID], {"route": "/v1/messages", "tier": "batch"}),
    "Langfuse": ([LANGFUSE], OF_LANGFUSE),
    "Langfuse's export": ([LANGFUSE_EXPORT], OF_LANGFUSE),
    "Langfuse's trace": ([{"id": "t1", "observations": [{**LANGFUSE, "type": "SPAN"}, LANGFUSE]}], OF_LANGFUSE),
    "LiteLLM": ([{**LITELLM, "messages": MESSAGES, "response": RESPONSE}], OF_LITELLM),
    "LiteLLM, as sent": ([{**LITELLM, "messages": "{}"} | STORED_AS_SENT], OF_LITELLM),
    "LiteLLM's logger": ([LITELLM_LOGGED], OF_LITELLM),
    "MLflow": ([MLFLOW], OF_MLFLOW),
    "MLflow's table": ([{"trace_id": "tr-1", "trace": json.dumps(MLFLOW)}], OF_MLFLOW),
    "MLflow's spans": ([{"spans": MLFLOW["data"]["spans"]}], OF_MLFLOW),
    "OpenTelemetry": ([otlp(SPAN | {"gen_ai.agent.name": "filer"})], OF_SPAN | {"step": "filer"}),
    "OpenTelemetry, instructions apart": ([otlp(SPAN | APART)], OF_SPAN),
    "OpenTelemetry's console": ([CONSOLE], OF_SPAN),
    "OpenTelemetry, numbered": ([otlp(GENAI | NUMBERED | {"gen_ai.completion.0.content": "lost_card"})], OF_SPAN),
    "OpenAI Agents": ([agents_span(AGENTS_DATA)], BILLED | OF_AGENTS),
    "OpenAI Agents' batch": ([{"data": [{"object": "trace"}, agents_span(AGENTS_DATA)]}], OF_AGENTS),
    "OpenAI Agents' response": ([agents_span(AGENTS_OWN)], OF_AGENTS | {"route": "/v1/responses"}),
    "LangSmith": ([LANGSMITH], OF_GRAPH),
    "LangSmith's tree": ([LANGSMITH_TREE], OF_GRAPH),
    "OpenInference": ([otlp(OPENINFERENCE)], OF_SPAN),
    "OpenInference, numbered": ([otlp(NUMBERED_INFERENCE)], OF_SPAN | {"model": "gpt-4o-mini-2024-07-18"}),
}


@pytest.mark.parametrize(("records", "expected"), CASES.values(), ids=CASES)
def test_one_exchange_in_many_logs(read_records: ReadRecords, records: list[Any], expected: dict[str, Any]) -> None:
    name = "log.csv" if isinstance(records[0], str) else "log.jsonl"
    (one,), problems = read_records(*records, name=name)
    assert problems == []
    prompt, said = read_prompt(one.route, one.request), read_answer(one.route, one.response)
    assert (prompt.turns, said.text) == (ASKED, "lost_card")
    found = {"route": "/v1/chat/completions"} | expected
    assert {field: getattr(one, field) for field in found} == found
    assert one.request.get("temperature", 0) == 0


FAILED = {
    "pair": ([{"request": REQUEST, "response": {"error": {"message": "busy"}}, "status_code": 429}], 429),
    "Langfuse": ([{**LANGFUSE, "output": None, "level": "ERROR", "statusMessage": "busy"}], 500),
    "LiteLLM": ([{**LITELLM, "messages": MESSAGES, "response": "{}", "status": "failure", "error_str": "busy"}], 500),
}


@pytest.mark.parametrize(("records", "status"), FAILED.values(), ids=FAILED)
def test_a_failed_request_keeps_its_error_and_status(
    read_records: ReadRecords, records: list[Any], status: int
) -> None:
    (one,), problems = read_records(*records)
    assert (problems, one.status, one.response) == ([], status, {"error": {"message": "busy"}})
    assert read_answer(one.route, one.response) is None


NONE = {
    "Langfuse's span": ([{**LANGFUSE, "type": "SPAN"}], []),
    "span of a tool": ([otlp({"gen_ai.operation.name": "execute_tool", "gen_ai.request.model": "m"})], []),
    "OpenAI Agents' spans": ([agents_span({"type": kind}) for kind in ("agent", "response")], [(2, NO_CONTENT)]),
    "span without content": ([otlp(GENAI)], [(1, NO_CONTENT)]),
    "LiteLLM without texts": ([{**LITELLM, "messages": "{}", "response": "{}"}], [(1, NO_CONTENT)]),
    "chat without an answer": ([{"messages": MESSAGES}], [(1, NO_CONTENT)]),
    "row without an answer": (["question,answer", "a,"], [(2, NO_CONTENT)]),
    "half a batch": ([BATCH, {**BATCHED, "custom_id": "d"}], [(1, "no response to"), (2, "no request to")]),
}


@pytest.mark.parametrize(("records", "named"), NONE.values(), ids=NONE)
def test_what_is_no_exchange_by_its_kind_is_left_out_and_what_lacks_something_is_named(
    read_records: ReadRecords, records: list[Any], named: list[tuple[int, str]]
) -> None:
    found, problems = read_records(*records, name="log.csv" if isinstance(records[0], str) else "log.jsonl")
    assert found == []
    assert [problem.line for problem in problems] == [line for line, _ in named]
    assert all(rule in problem.rule for problem, (_, rule) in zip(problems, named, strict=True))


def test_rows_of_a_table_without_times_keep_their_order(read_records: ReadRecords) -> None:
    (one, other), _ = read_records("question,answer", "a,b", "c,d", name="log.csv")
    assert one.at < other.at


def test_a_tracking_store_is_read_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "read_traces", {"support": [json.dumps(MLFLOW)]}.get)
    found, problems = read_logs(["mlflow:support"])
    assert [one.source for one in found] == ["mlflow:support:1"]
    assert problems == []


@pytest.mark.parametrize("numbered", [False, True])
def test_tools_and_calls_of_spans(read_records: ReadRecords, numbered: bool) -> None:
    arguments, tool = '{"label": "lost"}', {"name": "file", "parameters": {}}
    called = "llm.output_messages.0.message.tool_calls.0.tool_call.function"
    call = ("assistant", {"type": "tool_call", "name": "file", "arguments": json.loads(arguments)})
    whole = SPAN | {
        "gen_ai.tool.definitions": json.dumps([{"type": "function", **tool}]),
        "gen_ai.output.messages": parts(call),
    }
    one_by_one = NUMBERED_INFERENCE | {
        "llm.tools.0.tool.json_schema": json.dumps({"type": "function", "function": tool}),
        "llm.output_messages.0.message.content": "",
        f"{called}.name": "file",
        f"{called}.arguments": arguments,
    }
    (one,), _ = read_records(otlp(one_by_one if numbered else whole))
    assert read_answer(one.route, one.response) == ModelAnswer("", (ToolCall("file", arguments),), "tool_calls")
    assert one.request["tools"] == [{"type": "function", "function": tool}]
