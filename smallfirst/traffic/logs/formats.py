"""Formats of logs: which records are of one, and what stands where in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from smallfirst.base.errors import Problem
from smallfirst.base.extensions import Registry
from smallfirst.data.sources.text_files import RawRow
from smallfirst.models.pricing import whole
from smallfirst.registry.runs import COST, INPUTS, KIND, MODEL, OUTPUTS, TOKENS, read_traces
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.shapes import (
    as_object,
    find_bodies,
    first,
    known_request,
    milliseconds,
    moment,
    number,
    parsed,
    request_body,
    response_body,
    route_of,
)

NO_TIME = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
"""Of an exchange whose log has no times, until `read_logs` numbers them."""
_STORED = ": was the content of messages stored?"
NODE = "langgraph_node"
"""What LangGraph's callbacks call the name of a node."""
Row = dict[str, Any]


class Entry(NamedTuple):
    """The parts of an exchange in the spellings of the log."""

    request: Any
    response: Any
    id: Any = ""
    """Of the record, not of the response: records with one id are one exchange."""
    at: Any = None
    end: Any = None
    latency_ms: Any = None
    route: Any = ""
    model: Any = ""
    answered_by: Any = ""
    prompt_tokens: Any = None
    cached_tokens: Any = None
    completion_tokens: Any = None
    tier: str = ""
    cost_usd: Any = None
    tenant: Any = ""
    trace: Any = ""
    """What all steps of an agent's run share."""
    step: Any = ""
    """Name of the graph's node or of the agent."""
    error: Any = None
    """What went wrong, if the log says that something did."""
    status: Any = None
    more: dict[str, Any] = {}
    """Further settings of the request: tools, temperature, response_format."""


class LogFormat(NamedTuple):
    """One format of logs."""

    recognizes: Callable[[Row], bool]
    entries: Callable[[Row], Iterable[Entry]]
    """What is asked and answered in a record; what is none by its kind, such as a span of a tool, yields nothing."""


def exchange_of(entry: Entry, record: RawRow) -> Exchange | Problem:
    """Return the exchange, or why there is none."""
    request = request_body(entry.request)
    if request is None:
        return Problem(record.path, record.line, f"no request with messages or a prompt{_STORED}")
    response = response_body(entry.response)
    status = whole(entry.status) or 200
    if response is None:
        error = entry.error or (f"status {status}" if status >= 400 else None)
        if not error:
            return Problem(record.path, record.line, f"no answer{_STORED}")
        response = {"error": error if isinstance(error, dict) else {"message": str(error)[:500]}}
    if response.get("error") and status == 200:
        status = 500
    start, end = moment(entry.at), moment(entry.end)
    model = _name(entry.model) or _name(request.get("model"))
    given = {key: value for key, value in entry.more.items() if value not in (None, [], {}) and key not in request}
    latency_ms = number(entry.latency_ms)
    return Exchange(
        id=_text(entry.id),
        at=start or moment(response.get("created", response.get("created_at"))) or NO_TIME,
        route=route_of(entry.route, request, response),
        request={**({"model": model} if model else {}), **request, **given},
        response=response,
        status=status,
        model=model,
        answered_by=_name(entry.answered_by) or _name(response.get("model")) or model,
        tenant=_name(entry.tenant),
        trace=_text(entry.trace),
        step=_name(entry.step),
        prompt_tokens=whole(entry.prompt_tokens),
        cached_tokens=whole(entry.cached_tokens),
        completion_tokens=whole(entry.completion_tokens),
        tier=entry.tier,
        cost_usd=number(entry.cost_usd),
        latency_ms=milliseconds(start, end) if latency_ms is None else latency_ms,
        source=f"{record.path}:{record.line}",
    )


def _text(value: Any) -> str:
    return str(value or "").encode("utf-8", "replace").decode()


def _name(value: Any) -> str:
    return value if isinstance(value, str) else ""


# Requests beside their responses: bodies of the API, flywheel records, inference tables, chats, tables

_REQUESTS = ("request", "request_body", "requestBody", "req", "kwargs", "inputs", "input")
_CHATS = ("messages", "conversations", "conversation", "turns")
_NAMES = {
    "responses": "response response_body responseBody resp outputs output result completion ideal preferred_output",
    "times": "timestamp timestamp_ms created_at createdat start_time starttime request_time time at date created",
    "latencies": "latency_ms duration_ms execution_time_ms execution_duration_ms response_time_ms latencyms",
    "ids": "id request_id requestid databricks_request_id trace_id uuid",
    "prompt": "prompt user_prompt question query instruction message user text utterance ask input request input_text "
    "user_message content",
    "answer": "answer response completion output reply output_text assistant generated_text label model_output "
    "llm_response assistant_message result",
    "system": "system system_prompt system_message instructions",
}
_RESPONSES, _TIMES, _LATENCIES, _IDS, _PROMPTS, _ANSWERS, _SYSTEM = (names.split() for names in _NAMES.values())
"""The likeliest name comes first; all but `responses` as `_lowered` spells them."""
_SKIPPED = ("system", "developer", "user", "tool", "human")


def is_pair(values: Row) -> bool:
    """Return True for a request and a response under their usual names, or a chat."""
    held = first(values, *_REQUESTS) is not None and first(values, *_RESPONSES) is not None
    return held or any(isinstance(parsed(values.get(name)), list) for name in _CHATS)


def holds_messages(values: Row) -> bool:
    """Return True if the record asks with messages or a body of the API, not with a text as a table does."""
    asked = parsed(first(values, *_REQUESTS))
    chats = any(isinstance(parsed(values.get(name)), list) for name in _CHATS)
    return chats or known_request(asked) is not None or find_bodies(values)[0] is not None


def _pair(values: Row) -> Iterable[Entry]:
    response = first(values, *_RESPONSES)
    chat = parsed(first(values, *_CHATS))
    if not isinstance(chat, list):
        return [_entry(values, first(values, *_REQUESTS), response)]
    if isinstance(values.get("choices"), list):  # both bodies in one object
        answered = {"choices": values["choices"], "usage": values.get("usage")}
        return [_entry(values, {**values, "messages": chat}, answered)]
    last = chat[-1] if chat and isinstance(chat[-1], dict) else {}
    role = last.get("role", last.get("from"))
    if response is None and isinstance(role, str) and role not in _SKIPPED:
        return [_entry(values, {"messages": chat[:-1]}, [last])]
    held = {name: value for name, value in values.items() if name not in _CHATS}
    return [_entry(values, {"messages": chat}, find_bodies(held)[1] if response is None else response)]


def _is_table(values: Row) -> bool:
    row = _lowered(values)
    return any(name in row for name in _PROMPTS) and any(name in row for name in _ANSWERS)


def _table(values: Row) -> Iterable[Entry]:
    """A row with a column of prompts and one of answers, told by their names."""
    row = _lowered(values)
    asked, system = first(row, *_PROMPTS), first(row, *_SYSTEM)
    if isinstance(system, str) and isinstance(asked, str):
        asked = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    return [_entry(values, asked, first(row, *_ANSWERS))]


def _lowered(values: Mapping[str, Any]) -> Row:
    """Return the values by their names as the lists above spell them: "User prompt" is user_prompt."""
    return {str(name).strip().lower().replace(" ", "_").replace("-", "_"): value for name, value in values.items()}


def _entry(values: Row, request: Any, response: Any) -> Entry:
    row = _lowered(values)
    is_response = "choices" in row  # whose id and model are its own
    return Entry(
        request,
        response,
        id="" if is_response else first(row, *_IDS),
        at=first(row, *_TIMES),
        end=first(row, "end_time", "endtime", "response_time", "completed_at"),
        latency_ms=first(row, *_LATENCIES),
        route=first({**as_object(request), **row}, "url", "path", "endpoint", "route"),
        model="" if is_response else first(row, "model", "model_name", "deployment"),
        prompt_tokens=first(row, "prompt_tokens", "input_tokens"),
        completion_tokens=first(row, "completion_tokens", "output_tokens"),
        cost_usd=first(row, "cost_usd", "cost", "total_cost", "response_cost"),
        tenant=first(row, "client_id", "tenant", "user_id"),
        trace=first(row, "trace_id", "traceid", "run_id"),
        error=first(row, "error", "error_details"),
        status=first({**as_object(response), **row}, "status_code", "statuscode", "http_status"),
        more={name: row[name] for name in ("tools", "response_format") if name in row},
    )


# Batches of OpenAI and Anthropic: input and output files, joined by `custom_id`


def is_batch(values: Row) -> bool:
    """Return True for a line of a batch's input or output file."""
    return isinstance(values.get("custom_id"), str) and bool(
        {"body", "params", "response", "result", "error"} & values.keys()
    )


def is_batch_request(values: Row) -> bool:
    """Return True for a line of the input file."""
    return bool({"body", "params"} & values.keys())


def batch_entry(asked: Row, answered: Row) -> Entry:
    """Return what a line of the input file and its line of the output file say."""
    result, http = as_object(answered.get("result")), as_object(answered.get("response"))
    return Entry(
        asked.get("params") or asked.get("body"),
        result.get("message") or http.get("body"),
        id=asked["custom_id"],
        route=asked.get("url") or ("/v1/messages" if "params" in asked else ""),
        error=answered.get("error") or result.get("error"),
        status=http.get("status_code"),
        tier="batch",
    )


# Langfuse: observations as its API, web page and export to blob storage write them, alone or in their traces

_OBSERVATIONS = frozenset(
    {
        "SPAN", "EVENT", "GENERATION", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL",
    }
)  # fmt: skip
"""Of which one is read."""


def _is_langfuse(values: Row) -> bool:
    if isinstance(values.get("observations"), list):
        return True
    trace = {"traceId", "trace_id"} & values.keys()
    return bool(trace) and values.get("type") in _OBSERVATIONS and bool({"startTime", "start_time"} & values.keys())


def _langfuse(record: Row) -> Iterator[Entry]:
    for values in record.get("observations", [record]):
        if isinstance(values, dict) and values.get("type") == "GENERATION":
            yield _generation(values)._replace(trace=first(values, "traceId", "trace_id") or record.get("id"))


def _generation(values: Row) -> Entry:
    usage = {**as_object(values.get("usage")), **as_object(first(values, "usageDetails", "usage_details"))}
    costs = as_object(first(values, "costDetails", "cost_details"))
    cached = first(usage, "input_cached_tokens", "cache_read_input_tokens", "input_cache_read")
    prompt = first(usage, "input", "prompt_tokens", "promptTokens", "input_tokens")
    completion = first(usage, "output", "completion_tokens", "completionTokens", "output_tokens")
    settings = as_object(first(values, "modelParameters", "model_parameters"))
    failed = values.get("level") == "ERROR"
    return Entry(
        parsed(values.get("input")),
        values.get("output"),
        id=values.get("id"),
        at=first(values, "startTime", "start_time"),
        end=first(values, "endTime", "end_time"),
        model=first(values, "model", "providedModelName", "provided_model_name"),
        prompt_tokens=_sum(prompt, cached),
        cached_tokens=cached,
        completion_tokens=_sum(completion, usage.get("output_reasoning_tokens")),
        cost_usd=first({"own": costs.get("total"), **values}, "own", "totalCost", "total_cost", "calculatedTotalCost"),
        tenant=first(values, "userId", "user_id"),
        step=as_object(values.get("metadata")).get(NODE),
        error=(first(values, "statusMessage", "status_message") or "failed") if failed else None,
        more={name: settings.get(name) for name in ("temperature", "tools", "response_format")},
    )


def _sum(tokens: Any, more: Any) -> Any:
    """Return the tokens with those that Langfuse counts apart."""
    return tokens + more if isinstance(tokens, int) and isinstance(more, int) else tokens


# LiteLLM: rows of its spend logs, and payloads that its loggers write; without stored prompts they have no text

_LITELLM_ROUTES = {"responses": "/v1/responses", "embedding": "/v1/embeddings", "text_completion": "/v1/completions"}


def _litellm(values: Row) -> Iterable[Entry]:
    asked = as_object(values.get("proxy_server_request"))
    asked = as_object(asked.get("body")) or asked
    turns = parsed(values.get("messages"))
    request = {**as_object(values.get("model_parameters")), "messages": turns} if turns else asked
    answer = parsed(values.get("response")) or None
    details = as_object(values.get("metadata"))
    usage = as_object(details.get("usage_object"))
    error = first(details, "error_information") or values.get("error_str") or "failed"
    entry = Entry(
        {**asked, **request},
        answer,
        id=first(values, "litellm_call_id", "request_id", "id"),
        at=values.get("startTime"),
        end=values.get("endTime"),
        route=_LITELLM_ROUTES.get(str(values.get("call_type")).removeprefix("a"), ""),
        model=first(values, "model_group", "model"),
        answered_by=as_object(answer).get("model") or values.get("model"),
        prompt_tokens=values.get("prompt_tokens"),
        cached_tokens=as_object(usage.get("prompt_tokens_details")).get("cached_tokens"),
        completion_tokens=values.get("completion_tokens"),
        cost_usd=first(values, "response_cost", "spend"),
        tenant=first(values, "team_id", "end_user", "user"),
        trace=first(values, "session_id", "trace_id"),
        error=error if values.get("status") == "failure" else None,
    )
    return [entry]


# MLflow: traces as JSON, as rows of `search_traces`, and straight from a tracking store


def experiment_records(address: str) -> Iterator[RawRow]:
    """Yield the traces of `mlflow:EXPERIMENT`, newest first. Raise SmallfirstError if MLflow's store has none."""
    for n, text in enumerate(read_traces(address.partition(":")[2]), 1):
        yield RawRow(address, n, json.loads(text))


def _mlflow_spans(values: Row) -> list[Row]:
    """Return the spans of a trace; none if it is none of MLflow's."""
    trace = as_object(values.get("trace")) or values
    spans = parsed(first(as_object(trace.get("data")), "spans") or trace.get("spans"))
    if not isinstance(spans, list) or not all(isinstance(span, dict) for span in spans):
        return []
    return spans if any(KIND in as_object(span.get("attributes")) for span in spans) else []


def _mlflow(values: Row) -> Iterator[Entry]:
    for span in _mlflow_spans(values):
        attributes = {name: _decoded(value) for name, value in as_object(span.get("attributes")).items()}
        if attributes.get(KIND) not in ("CHAT_MODEL", "LLM"):
            continue
        asked, usage = attributes.get(INPUTS), as_object(attributes.get(TOKENS))
        tools = attributes.get("mlflow.chat.tools")
        yield Entry(
            asked,
            attributes.get(OUTPUTS),
            id=f"{span.get('trace_id', '')}/{span.get('span_id', '')}",
            at=first(span, "start_time_unix_nano", "start_time_ns", "start_time"),
            end=first(span, "end_time_unix_nano", "end_time_ns", "end_time"),
            model=as_object(asked).get("model") or attributes.get(MODEL),
            answered_by=attributes.get(MODEL),
            prompt_tokens=usage.get("input_tokens"),
            cached_tokens=usage.get("cache_read_input_tokens"),
            completion_tokens=usage.get("output_tokens"),
            cost_usd=as_object(attributes.get(COST)).get("total_cost"),
            trace=span.get("trace_id"),
            step=as_object(attributes.get("metadata")).get(NODE),
            error="failed" if "ERROR" in str(as_object(span.get("status")).get("code")) else None,
            more={"tools": tools} if isinstance(tools, list) else {},
        )


def _decoded(value: Any) -> Any:
    """Return what an attribute holds: MLflow writes each as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


# OpenTelemetry's GenAI spans as OTLP JSON or alone, messages in attributes: `gen_ai.input.messages`, numbered ones
# (`gen_ai.prompt.0.content`), and OpenInference's

_OPERATIONS = ("chat", "text_completion", "generate_content", "responses", "completion")
_OPENINFERENCE_KIND = "openinference.span.kind"
_AGENT = "gen_ai.agent.name"


def _is_flat_span(values: Row) -> bool:
    """Return True for a span by itself, as the console exporter writes it."""
    attributes = values.get("attributes")
    named = isinstance(attributes, dict) and any(str(key).startswith(("gen_ai.", "llm.")) for key in attributes)
    return named and ("context" in values or "spanId" in values or "span_id" in values)


def _opentelemetry(values: Row) -> Iterator[Entry]:
    spans = [values] if _is_flat_span(values) else _inner(values, "resourceSpans", "scopeSpans", "spans")
    for span in spans:
        attributes = _attributes(span.get("attributes"))
        if _is_inference(attributes):
            yield _span(span, attributes)


def _is_inference(attributes: Row) -> bool:
    kind = attributes.get(_OPENINFERENCE_KIND)
    if kind is not None:
        return bool(kind == "LLM")
    operation = attributes.get("gen_ai.operation.name", attributes.get("llm.request.type"))
    return operation in _OPERATIONS or (operation is None and "gen_ai.request.model" in attributes)


def _span(span: Row, a: Row) -> Entry:
    request, response = _span_messages(a)
    status = as_object(span.get("status"))
    failed = status.get("code", status.get("status_code")) in (2, "STATUS_CODE_ERROR", "ERROR")
    cached = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens")
    context = as_object(span.get("context"))
    return Entry(
        request,
        response,
        id=str(first(span, "spanId", "span_id") or context.get("span_id") or ""),
        at=first(span, "startTimeUnixNano", "start_time"),
        end=first(span, "endTimeUnixNano", "end_time"),
        route="/v1/completions" if a.get("gen_ai.operation.name") == "text_completion" else "",
        model=first(a, "gen_ai.request.model") or as_object(request).get("model") or a.get("llm.model_name"),
        answered_by=first(a, "gen_ai.response.model", "llm.model_name"),
        prompt_tokens=first(a, "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
        cached_tokens=first(a, *cached, "llm.token_count.prompt_details.cache_read"),
        completion_tokens=first(
            a, "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"
        ),
        tenant=first(a, "user.id", "enduser.id"),
        trace=first(span, "traceId", "trace_id") or context.get("trace_id"),
        step=first({**as_object(a.get("metadata")), **a}, NODE, f"traceloop.association.properties.{NODE}", _AGENT),
        error=(status.get("message") or a.get("error.type") or "failed") if failed or "error.type" in a else None,
        more={"tools": _tools(a), "temperature": a.get("gen_ai.request.temperature")},
    )


def _span_messages(a: Row) -> tuple[Any, Any]:
    """Return request and response in the first of the conventions that the span has."""
    if a.get(_OPENINFERENCE_KIND) == "LLM" and as_object(a.get("input.value")):
        return a["input.value"], a.get("output.value")
    if "gen_ai.input.messages" in a:
        system = parsed(a.get("gen_ai.system_instructions"))
        said = {"parts": system} if isinstance(system, list) else {"content": system}
        head = [{"role": "system", **said}] if system else []
        turns = parsed(a["gen_ai.input.messages"])
        asked = [*head, *turns] if isinstance(turns, list) else [*head, {"role": "user", "content": str(turns)}]
        return asked, a.get("gen_ai.output.messages")
    for prompt, completion in (("gen_ai.prompt", "gen_ai.completion"), ("llm.input_messages", "llm.output_messages")):
        if numbered := _numbered(a, prompt):
            return numbered, _numbered(a, completion) or None
    return None, None


def _numbered(attributes: Row, prefix: str) -> list[Row]:
    """Return the messages whose parts are attributes of their own: `PREFIX.0.role`, `PREFIX.0.content` and so on."""
    root: Row = {}
    for name, value in attributes.items():
        if not name.startswith(f"{prefix}."):
            continue
        place = root
        *path, last = name.removeprefix(f"{prefix}.").split(".")
        for part in path:
            inner = place.setdefault(part, {})
            place = inner if isinstance(inner, dict) else {}
        place[last] = value
    nested = _lists(root)
    return [_called(as_object(one.get("message")) or one) for one in nested if isinstance(one, dict)] if root else []


def _lists(value: Any) -> Any:
    """Return objects whose keys are all numbers as lists."""
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _lists(inner) for key, inner in value.items()}


def _called(turn: Row) -> Row:
    """Return the message with its tool calls in the form of chat completions."""
    calls = []
    for given in turn.get("tool_calls") or ():
        call = as_object(as_object(given).get("tool_call")) or as_object(given)
        function = as_object(call.get("function")) or {name: call.get(name) for name in ("name", "arguments")}
        calls.append({"id": call.get("id"), "type": "function", "function": function})
    return {**turn, "tool_calls": calls} if calls else turn


def _tools(a: Row) -> list[Any]:
    given = parsed(a.get("gen_ai.tool.definitions"))
    numbered = _numbered(a, "llm.tools") or _numbered(a, "llm.request.functions")
    tools = [parsed(as_object(one.get("tool")).get("json_schema", one)) for one in numbered]
    return [
        tool if "function" in tool else {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        for tool in (given if isinstance(given, list) else tools)
        if isinstance(tool, dict)
    ]


def _inner(values: Row, *names: str) -> Iterator[Row]:
    """Yield the objects in lists within lists: names are those of the lists."""
    items = values.get(names[0])
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            yield from _inner(item, *names[1:]) if len(names) > 1 else (item,)


def _attributes(given: Any) -> Row:
    if isinstance(given, dict):
        return given
    pairs = given if isinstance(given, list) else []
    return {str(pair.get("key")): _value(pair.get("value")) for pair in pairs if isinstance(pair, dict)}


def _value(given: Any) -> Any:
    """Return the value of OTLP's AnyValue."""
    if not isinstance(given, dict) or len(given) != 1:
        return given
    kind, value = next(iter(given.items()))
    if kind == "arrayValue":
        items = as_object(value).get("values")
        return [_value(item) for item in items] if isinstance(items, list) else []
    if kind == "kvlistValue":
        return _attributes(as_object(value).get("values"))
    return whole(value) if kind == "intValue" else value


OPENTELEMETRY = LogFormat(lambda values: "resourceSpans" in values or _is_flat_span(values), _opentelemetry)
MLFLOW = LogFormat(lambda values: bool(_mlflow_spans(values)), _mlflow)
LANGFUSE = LogFormat(_is_langfuse, _langfuse)
LITELLM = LogFormat(lambda values: "call_type" in values and bool({"spend", "response_cost"} & values.keys()), _litellm)
LOG_FORMATS: Registry[LogFormat] = Registry(
    "smallfirst.log_formats",
    {
        **{name.lower(): f"{__name__}:{name}" for name in ("OPENTELEMETRY", "MLFLOW", "LANGFUSE", "LITELLM")},
        **{name.lower(): f"smallfirst.traffic.logs.agents:{name}" for name in ("OPENAI_AGENTS", "LANGSMITH")},
    },
    noun="log format",
)
"""Formats of one record each, in the order in which they are tried; a batch, of two, comes before them."""
PAIRS = LogFormat(is_pair, _pair)
NESTED = LogFormat(
    lambda values: None not in find_bodies(values), lambda values: [_entry(values, *find_bodies(values))]
)
"""Bodies of the API anywhere in a record, under whatever names a program of one's own has given them."""
TABLE = LogFormat(_is_table, _table)
