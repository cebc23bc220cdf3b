"""OpenTelemetry's GenAI spans as OTLP JSON: messages in attributes, in events of the span, or in log records beside it.

Read are the attributes of the current conventions (`gen_ai.input.messages`), the events of the older ones
(`gen_ai.user.message`, `gen_ai.choice`), numbered attributes (`gen_ai.prompt.0.content`), and OpenInference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from smallfirst.errors import Problem
from smallfirst.pricing.tokens import whole
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.files import LogRecord
from smallfirst.traffic.logs.formats import Entry, LogReader, exchange_of
from smallfirst.traffic.logs.shapes import as_object, first, parsed

_OPERATIONS = ("chat", "text_completion", "generate_content", "responses", "completion")
_DETAILS = "gen_ai.client.inference.operation.details"
_SAID = ("gen_ai.system.message", "gen_ai.user.message", "gen_ai.assistant.message", "gen_ai.tool.message")
_CHOICE = "gen_ai.choice"
_OPENINFERENCE_KIND = "openinference.span.kind"


class _Span(NamedTuple):
    record: LogRecord
    values: dict[str, Any]
    attributes: dict[str, Any]
    events: list[tuple[str, Any]]


class OpenTelemetryReader(LogReader):
    """Keeps the spans without messages until the log records with their ids have been read."""

    title = "OpenTelemetry spans"

    def __init__(self) -> None:
        self._waiting: dict[str, _Span] = {}
        self._events: dict[str, list[tuple[str, Any]]] = {}

    def recognizes(self, values: dict[str, Any]) -> bool:
        return "resourceSpans" in values or "resourceLogs" in values or _is_flat_span(values)

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        for log in _inner(record.values, "resourceLogs", "scopeLogs", "logRecords"):
            attributes = _attributes(log.get("attributes"))
            name = log.get("eventName") or attributes.get("event.name") or ""
            content = {**attributes, **as_object(_value(log.get("body")))}
            self._events.setdefault(str(log.get("spanId", "")), []).append((str(name), content))
        spans = [record.values] if _is_flat_span(record.values) else None
        for span in spans or _inner(record.values, "resourceSpans", "scopeSpans", "spans"):
            attributes = _attributes(span.get("attributes"))
            if not _is_inference(attributes):
                continue
            one = _Span(record, span, attributes, list(_span_events(span)))
            entry = _entry(one)
            if entry.request is None or (entry.response is None and not entry.error):
                self._waiting[_span_id(span)] = one
            else:
                yield exchange_of(entry, record)

    def finish(self) -> Iterable[Exchange | Problem]:
        for id, span in self._waiting.items():
            found = exchange_of(_entry(span._replace(events=[*span.events, *self._events.get(id, [])])), span.record)
            if isinstance(found, Problem):
                found = found._replace(rule=f"span {id}: {found.rule}: was the content of messages captured?")
            yield found
        self._waiting.clear()
        self._events.clear()


def _is_flat_span(values: Mapping[str, Any]) -> bool:
    """Return True for a span by itself, as the console exporter writes it."""
    attributes = values.get("attributes")
    named = isinstance(attributes, dict) and any(str(key).startswith(("gen_ai.", "llm.")) for key in attributes)
    return named and ("context" in values or "spanId" in values or "span_id" in values)


def _is_inference(attributes: Mapping[str, Any]) -> bool:
    kind = attributes.get(_OPENINFERENCE_KIND)
    if kind is not None:
        return bool(kind == "LLM")
    operation = attributes.get("gen_ai.operation.name", attributes.get("llm.request.type"))
    return operation in _OPERATIONS or (operation is None and "gen_ai.request.model" in attributes)


def _entry(span: _Span) -> Entry:
    a, values = span.attributes, span.values
    request, response = _messages(span)
    status = as_object(values.get("status"))
    failed = status.get("code", status.get("status_code")) in (2, "STATUS_CODE_ERROR", "ERROR")
    return Entry(
        request,
        response,
        id=_span_id(values),
        at=first(values, "startTimeUnixNano", "start_time"),
        end=first(values, "endTimeUnixNano", "end_time"),
        route="/v1/completions" if a.get("gen_ai.operation.name") == "text_completion" else "",
        model=first(a, "gen_ai.request.model") or as_object(request).get("model") or a.get("llm.model_name"),
        answered_by=first(a, "gen_ai.response.model", "llm.model_name"),
        prompt_tokens=first(a, "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
        cached_tokens=first(
            a,
            "gen_ai.usage.cache_read.input_tokens",
            "gen_ai.usage.cache_read_input_tokens",
            "llm.token_count.prompt_details.cache_read",
        ),
        completion_tokens=first(
            a, "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"
        ),
        tenant=first(a, "user.id", "enduser.id"),
        error=(status.get("message") or a.get("error.type") or "failed") if failed or "error.type" in a else None,
        more={"tools": _tools(a), "temperature": a.get("gen_ai.request.temperature")},
    )


def _messages(span: _Span) -> tuple[Any, Any]:
    """Return request and response in the first of the conventions that the span has."""
    a = span.attributes
    if a.get(_OPENINFERENCE_KIND) == "LLM" and as_object(a.get("input.value")):
        return a["input.value"], a.get("output.value")
    for held in (a, *(as_object(content) for name, content in span.events if name == _DETAILS)):
        if "gen_ai.input.messages" in held:
            system = parsed(held.get("gen_ai.system_instructions"))
            said = {"parts": system} if isinstance(system, list) else {"content": system}
            head = [{"role": "system", **said}] if system else []
            turns = parsed(held["gen_ai.input.messages"])
            asked = [*head, *turns] if isinstance(turns, list) else [*head, {"role": "user", "content": str(turns)}]
            return asked, held.get("gen_ai.output.messages")
    for prompt, completion in (("gen_ai.prompt", "gen_ai.completion"), ("llm.input_messages", "llm.output_messages")):
        if numbered := _numbered(a, prompt):
            return numbered, _numbered(a, completion) or None
    return _from_events(span.events)


def _from_events(events: list[tuple[str, Any]]) -> tuple[Any, Any]:
    """Return the messages of the older events, each with its role in its name."""
    turns, answer = [], None
    for name, given in events:
        content = as_object(given)
        content = as_object(content.get("gen_ai.event.content")) or content
        said = as_object(content.get("message")) if name == _CHOICE else content
        if name in (*_SAID, _CHOICE) and not _has_content(said):
            continue
        if name in _SAID:
            turns.append({"role": name.split(".")[1], **content})
        elif name == _CHOICE:
            answer = {**content, "message": {"role": "assistant", **said}}
        elif name == "gen_ai.content.prompt":
            turns = parsed(content.get("gen_ai.prompt")) or turns
        elif name == "gen_ai.content.completion":
            answer = parsed(content.get("gen_ai.completion"))
    return turns or None, answer


def _has_content(said: Mapping[str, Any]) -> bool:
    """Return False for a message of an application that captures none of its content."""
    calls = said.get("tool_calls")
    functions = [as_object(as_object(call).get("function")) for call in calls] if isinstance(calls, list) else []
    return "content" in said or any("arguments" in function for function in functions)


def _numbered(attributes: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Return the messages whose parts are attributes of their own: `PREFIX.0.role`, `PREFIX.0.content` and so on."""
    root: dict[str, Any] = {}
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


def _called(turn: dict[str, Any]) -> dict[str, Any]:
    """Return the message with its tool calls in the form of chat completions."""
    calls = []
    for given in turn.get("tool_calls") or ():
        call = as_object(as_object(given).get("tool_call")) or as_object(given)
        function = as_object(call.get("function")) or {name: call.get(name) for name in ("name", "arguments")}
        calls.append({"id": call.get("id"), "type": "function", "function": function})
    return {**turn, "tool_calls": calls} if calls else turn


def _tools(attributes: Mapping[str, Any]) -> list[Any]:
    given = parsed(attributes.get("gen_ai.tool.definitions"))
    numbered = _numbered(attributes, "llm.tools") or _numbered(attributes, "llm.request.functions")
    tools = (
        given if isinstance(given, list) else [parsed(as_object(t.get("tool")).get("json_schema", t)) for t in numbered]
    )
    return [
        tool if "function" in tool else {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        for tool in tools
        if isinstance(tool, dict)
    ]


def _span_events(span: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for event in _inner(span, "events"):
        yield str(event.get("name")), _attributes(event.get("attributes"))


def _span_id(span: Mapping[str, Any]) -> str:
    return str(first(span, "spanId", "span_id") or as_object(span.get("context")).get("span_id") or "")


def _inner(values: Mapping[str, Any], *names: str) -> Iterator[dict[str, Any]]:
    """Yield the objects in lists within lists: names are those of the lists."""
    items = values.get(names[0])
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            yield from _inner(item, *names[1:]) if len(names) > 1 else (item,)


def _attributes(given: Any) -> dict[str, Any]:
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
    if kind == "intValue":
        return whole(value)
    return value
