"""What a reader finds in one record of a log, and the exchange that is made of it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from smallfirst.errors import Problem
from smallfirst.pricing.tokens import whole
from smallfirst.registry.traces import COST, INPUTS, KIND, MODEL, OUTPUTS, TOKENS, read_traces
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.files import LogRecord
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


class Entry(NamedTuple):
    """The parts of an exchange in the spellings of the log."""

    request: Any
    response: Any
    id: Any = ""
    """Of the record, not of the response: records with one id are one exchange."""
    at: Any = None
    end: Any = None
    first_token_at: Any = None
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
    error: Any = None
    """What went wrong, if the log says that something did."""
    status: Any = None
    more: dict[str, Any] = {}
    """Further settings of the request: tools, temperature, response_format."""


class LogReader(ABC):
    """One format of logs. A reader may keep records until their counterparts come."""

    title: str
    """What the format is called."""

    @abstractmethod
    def recognizes(self, values: dict[str, Any]) -> bool:
        """Return True if the record is of this format."""

    @abstractmethod
    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        """Yield the exchanges in a record; what is none by its kind, such as a span of a tool, yields nothing."""

    def finish(self) -> Iterable[Exchange | Problem]:
        """Yield what was kept."""
        return ()


def exchange_of(entry: Entry, record: LogRecord) -> Exchange | Problem:
    """Return the exchange, or why there is none."""
    request = request_body(entry.request)
    if request is None:
        return Problem(record.path, record.line, "no request with messages or a prompt")
    response = response_body(entry.response)
    status = whole(entry.status) or 200
    if response is None:
        error = entry.error or (f"status {status}" if status >= 400 else None)
        if not error:
            return Problem(record.path, record.line, "no answer")
        response = {"error": error if isinstance(error, dict) else {"message": str(error)[:500]}}
    if "error" in response and response["error"] and status == 200:
        status = 500
    start, end = moment(entry.at), moment(entry.end)
    model = _name(entry.model) or _name(request.get("model"))
    given = {key: value for key, value in entry.more.items() if value not in (None, [], {}) and key not in request}
    return Exchange(
        id=str(entry.id or "").encode("utf-8", "replace").decode(),
        at=start or moment(response.get("created", response.get("created_at"))) or NO_TIME,
        route=route_of(entry.route, request, response),
        request={**({"model": model} if model else {}), **request, **given},
        response=response,
        status=status,
        model=model,
        answered_by=_name(entry.answered_by) or _name(response.get("model")) or model,
        tenant=_name(entry.tenant),
        streamed=request.get("stream") is True,
        prompt_tokens=whole(entry.prompt_tokens),
        cached_tokens=whole(entry.cached_tokens),
        completion_tokens=whole(entry.completion_tokens),
        tier=entry.tier,
        cost_usd=number(entry.cost_usd),
        latency_ms=milliseconds(start, end) if (given_ms := number(entry.latency_ms)) is None else given_ms,
        first_token_ms=milliseconds(start, moment(entry.first_token_at)),
        source=f"{record.path}:{record.line}",
    )


def _name(value: Any) -> str:
    return value if isinstance(value, str) else ""


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


class PairReader(LogReader):
    """A request and a response in one record, under their usual names or as one body."""

    title = "requests and responses"

    def recognizes(self, values: dict[str, Any]) -> bool:
        held = first(values, *_REQUESTS) is not None and first(values, *_RESPONSES) is not None
        return held or any(isinstance(parsed(values.get(name)), list) for name in _CHATS)

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        return [exchange_of(_entry(record.values, *_parts(record.values)), record)]


class NestedReader(PairReader):
    """Bodies of the API anywhere in a record, under whatever names a program of one's own has given them."""

    title = "records with a request and a response in them"

    def recognizes(self, values: dict[str, Any]) -> bool:
        return None not in find_bodies(values)

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        return [exchange_of(_entry(record.values, *find_bodies(record.values)), record)]


class TableReader(LogReader):
    """Rows of CSV, Parquet or flat JSON with a column of prompts and one of answers, told by their names."""

    title = "a table of prompts and answers"

    def recognizes(self, values: dict[str, Any]) -> bool:
        row = _lowered(values)
        return any(name in row for name in _PROMPTS) and any(name in row for name in _ANSWERS)

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        row = _lowered(record.values)
        asked, system = first(row, *_PROMPTS), first(row, *_SYSTEM)
        if isinstance(system, str) and isinstance(asked, str):
            asked = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
        return [exchange_of(_entry(record.values, asked, first(row, *_ANSWERS)), record)]


def holds_messages(values: Mapping[str, Any]) -> bool:
    """Return True if the record asks with messages or a body of the API, not with a text as a table does."""
    asked = parsed(first(values, *_REQUESTS))
    chats = any(isinstance(parsed(values.get(name)), list) for name in _CHATS)
    return chats or known_request(asked) is not None or find_bodies(values)[0] is not None


def _lowered(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by their names as the lists above spell them: "User prompt" is user_prompt."""
    return {str(name).strip().lower().replace(" ", "_").replace("-", "_"): value for name, value in values.items()}


def _entry(values: Mapping[str, Any], request: Any, response: Any) -> Entry:
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
        error=first(row, "error", "error_details"),
        status=first({**as_object(response), **row}, "status_code", "statuscode", "http_status"),
        more={name: row[name] for name in ("tools", "response_format") if name in row},
    )


def _parts(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return request and response."""
    response = first(values, *_RESPONSES)
    chat = parsed(first(values, *_CHATS))
    if isinstance(chat, list):
        if isinstance(values.get("choices"), list):  # both bodies in one object
            return {**values, "messages": chat}, {"choices": values["choices"], "usage": values.get("usage")}
        last = chat[-1] if chat and isinstance(chat[-1], dict) else {}
        role = last.get("role", last.get("from"))
        if response is None and isinstance(role, str) and role not in _SKIPPED:
            return {"messages": chat[:-1]}, [last]
        held = {name: value for name, value in values.items() if name not in _CHATS}
        return {"messages": chat}, find_bodies(held)[1] if response is None else response
    return first(values, *_REQUESTS), response


class BatchReader(LogReader):
    """Keeps requests until their responses come, and the other way round."""

    title = "batch requests and responses"

    def __init__(self) -> None:
        self._requests: dict[str, LogRecord] = {}
        self._responses: dict[str, LogRecord] = {}

    def recognizes(self, values: dict[str, Any]) -> bool:
        return isinstance(values.get("custom_id"), str) and bool(
            {"body", "params", "response", "result", "error"} & values.keys()
        )

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        id, is_request = record.values["custom_id"], bool({"body", "params"} & record.values.keys())
        kept, others = (self._requests, self._responses) if is_request else (self._responses, self._requests)
        other = others.pop(id, None)
        if other is None:
            kept[id] = record
            return []
        return [_joined(*((record, other) if is_request else (other, record)))]

    def finish(self) -> Iterable[Exchange | Problem]:
        for kept, missing in ((self._requests, "response"), (self._responses, "request")):
            for id, record in kept.items():
                yield Problem(record.path, record.line, f"no {missing} to custom_id {id!r} in the batch's other file")
            kept.clear()


def _joined(request: LogRecord, response: LogRecord) -> Exchange | Problem:
    asked, answered = request.values, response.values
    result, http = as_object(answered.get("result")), as_object(answered.get("response"))
    error = answered.get("error") or result.get("error")
    body = result.get("message") or http.get("body")
    route = asked.get("url") or ("/v1/messages" if "params" in asked else "")
    entry = Entry(
        asked.get("params") or asked.get("body"),
        body,
        id=asked["custom_id"],
        route=route,
        error=error,
        status=http.get("status_code"),
        tier="batch",
    )
    return exchange_of(entry, request)


_TYPES = ("SPAN", "EVENT", "GENERATION", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL")


class LangfuseReader(LogReader):
    """Reads generations; other observations are none of a model's."""

    title = "Langfuse observations"

    def recognizes(self, values: dict[str, Any]) -> bool:
        if isinstance(values.get("observations"), list):
            return True
        trace = {"traceId", "trace_id"} & values.keys()
        return bool(trace) and values.get("type") in _TYPES and bool({"startTime", "start_time"} & values.keys())

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        for values in record.values.get("observations", [record.values]):
            if isinstance(values, dict) and values.get("type") == "GENERATION":
                yield exchange_of(_langfuse_entry(values), record)


def _langfuse_entry(values: dict[str, Any]) -> Entry:
    usage = {**as_object(values.get("usage")), **as_object(first(values, "usageDetails", "usage_details"))}
    costs = as_object(first(values, "costDetails", "cost_details"))
    cached = first(usage, "input_cached_tokens", "cache_read_input_tokens", "input_cache_read")
    prompt = first(usage, "input", "prompt_tokens", "promptTokens", "input_tokens")
    settings = as_object(first(values, "modelParameters", "model_parameters"))
    failed = values.get("level") == "ERROR"
    return Entry(
        parsed(values.get("input")),
        values.get("output"),
        id=values.get("id"),
        at=first(values, "startTime", "start_time"),
        end=first(values, "endTime", "end_time"),
        first_token_at=first(values, "completionStartTime", "completion_start_time"),
        model=first(values, "model", "providedModelName", "provided_model_name"),
        prompt_tokens=_sum(prompt, cached),
        cached_tokens=cached,
        completion_tokens=_sum(
            first(usage, "output", "completion_tokens", "completionTokens", "output_tokens"),
            usage.get("output_reasoning_tokens"),
        ),
        cost_usd=first({"own": costs.get("total"), **values}, "own", "totalCost", "total_cost", "calculatedTotalCost"),
        tenant=first(values, "userId", "user_id"),
        error=(first(values, "statusMessage", "status_message") or "failed") if failed else None,
        more={name: settings.get(name) for name in ("temperature", "tools", "response_format")},
    )


def _sum(tokens: Any, more: Any) -> Any:
    """Return the tokens with those that Langfuse counts apart."""
    return tokens + more if isinstance(tokens, int) and isinstance(more, int) else tokens


_ROUTES = {"responses": "/v1/responses", "embedding": "/v1/embeddings", "text_completion": "/v1/completions"}


class LiteLLMReader(LogReader):
    """Reads rows whose proxy was told to store prompts; others have a bill but no text."""

    title = "LiteLLM's spend logs"

    def recognizes(self, values: dict[str, Any]) -> bool:
        return "call_type" in values and bool({"spend", "response_cost"} & values.keys())

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        values = record.values
        asked = as_object(values.get("proxy_server_request"))
        asked = as_object(asked.get("body")) or asked
        turns = parsed(values.get("messages"))
        request = {**as_object(values.get("model_parameters")), "messages": turns} if turns else asked
        if not request or not (answer := parsed(values.get("response"))):
            if values.get("status") != "failure":
                return [
                    Problem(record.path, record.line, "no text: LiteLLM was not told to store_prompts_in_spend_logs")
                ]
            answer = None
        call = str(values.get("call_type")).removeprefix("a")
        information = as_object(values.get("metadata"))
        usage = as_object(information.get("usage_object"))
        entry = Entry(
            {**asked, **request},
            answer,
            id=first(values, "litellm_call_id", "request_id", "id"),
            at=values.get("startTime"),
            end=values.get("endTime"),
            first_token_at=values.get("completionStartTime") if values.get("stream") else None,
            route=_ROUTES.get(call, ""),
            model=first(values, "model_group", "model"),
            answered_by=as_object(answer).get("model") or values.get("model"),
            prompt_tokens=values.get("prompt_tokens"),
            cached_tokens=as_object(usage.get("prompt_tokens_details")).get("cached_tokens"),
            completion_tokens=values.get("completion_tokens"),
            cost_usd=first(values, "response_cost", "spend"),
            tenant=first(values, "team_id", "end_user", "user"),
            error=first(information, "error_information") or values.get("error_str") or "failed",
        )
        return [exchange_of(entry, record)]


ADDRESS = "mlflow:"
"""What an address of an experiment's traces begins with: `mlflow:support`."""
_MODELS = ("CHAT_MODEL", "LLM")


class MLflowReader(LogReader):
    """Reads the spans of models; a trace's other spans are the application's own."""

    title = "MLflow traces"

    def recognizes(self, values: dict[str, Any]) -> bool:
        return _spans(values) is not None

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        found = False
        for span in _spans(record.values) or ():
            attributes = {name: _decoded(value) for name, value in as_object(span.get("attributes")).items()}
            if attributes.get(KIND) in _MODELS:
                found = True
                yield exchange_of(_mlflow_entry(span, attributes), record)
        if not found:
            yield Problem(record.path, record.line, "no span of a model (CHAT_MODEL or LLM) in the trace")


def experiment_records(address: str) -> Iterator[LogRecord]:
    """Yield the traces of an experiment in MLflow's store, newest first. Raise SmallfirstError if it has none."""
    name = address.removeprefix(ADDRESS)
    for n, text in enumerate(read_traces(name), 1):
        yield LogRecord(address, n, json.loads(text))


def _spans(values: dict[str, Any]) -> list[dict[str, Any]] | None:
    trace = as_object(values.get("trace")) or values
    spans = parsed(first(as_object(trace.get("data")), "spans") or trace.get("spans"))
    if not isinstance(spans, list) or not spans or not all(isinstance(span, dict) for span in spans):
        return None
    return spans if any(KIND in as_object(span.get("attributes")) for span in spans) else None


def _decoded(value: Any) -> Any:
    """Return what an attribute holds: MLflow writes each as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _mlflow_entry(span: dict[str, Any], attributes: dict[str, Any]) -> Entry:
    asked, usage = attributes.get(INPUTS), as_object(attributes.get(TOKENS))
    tools = attributes.get("mlflow.chat.tools")
    return Entry(
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
        error="failed" if "ERROR" in str(as_object(span.get("status")).get("code")) else None,
        more={"tools": tools} if isinstance(tools, list) else {},
    )
