"""Requests beside their responses: OpenAI's bodies, NVIDIA's flywheel records, Databricks' inference tables, chats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smallfirst.errors import Problem
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.entry import Entry, exchange_of
from smallfirst.traffic.logs.records import LogRecord
from smallfirst.traffic.logs.shapes import as_object, find_bodies, first, known_request, parsed

_REQUESTS = ("request", "request_body", "requestBody", "req", "kwargs", "inputs", "input")
_CHATS = ("messages", "conversations", "conversation", "turns")
_NAMES = {
    "times": "timestamp timestamp_ms created_at createdAt start_time startTime request_time time at date created",
    "latencies": "latency_ms duration_ms execution_time_ms execution_duration_ms response_time_ms latencyMs",
    "responses": "response response_body responseBody resp outputs output result completion ideal preferred_output",
    "ids": "id request_id requestId databricks_request_id uuid",
}
TIMES, LATENCIES, _RESPONSES, IDS = (names.split() for names in _NAMES.values())
_SKIPPED = ("system", "developer", "user", "tool", "human")


class PairReader:
    """A request and a response in one record, under their usual names or as one body."""

    title = "requests and responses"

    def recognizes(self, values: dict[str, Any]) -> bool:
        held = first(values, *_REQUESTS) is not None and first(values, *_RESPONSES) is not None
        return held or any(isinstance(parsed(values.get(name)), list) for name in _CHATS)

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        return [exchange_of(_entry(record.values, *_parts(record.values)), record)]

    def finish(self) -> Iterable[Exchange | Problem]:
        return ()


class NestedReader(PairReader):
    """Bodies of the API anywhere in a record, under whatever names a program of one's own has given them."""

    title = "records with a request and a response in them"

    def recognizes(self, values: dict[str, Any]) -> bool:
        return None not in find_bodies(values)

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        return [exchange_of(_entry(record.values, *find_bodies(record.values)), record)]


def holds_messages(values: Mapping[str, Any]) -> bool:
    """Return True if the record asks with messages or a body of the API, not with a text as a table does."""
    asked = parsed(first(values, *_REQUESTS))
    chats = any(isinstance(parsed(values.get(name)), list) for name in _CHATS)
    return chats or known_request(asked) is not None or find_bodies(values)[0] is not None


def _entry(values: Mapping[str, Any], request: Any, response: Any) -> Entry:
    asked = as_object(request)
    return Entry(
        request,
        response,
        id=first(values, *IDS) if "choices" not in values else "",
        at=first(values, *TIMES),
        end=first(values, "end_time", "endTime", "response_time", "completed_at"),
        latency_ms=first(values, *LATENCIES),
        route=first({**asked, **values}, "url", "path", "endpoint", "route"),
        model=values.get("model") if "choices" not in values else "",
        cost_usd=first(values, "cost_usd", "cost", "total_cost", "response_cost"),
        tenant=values.get("client_id"),
        error=first(values, "error", "error_details"),
        status=first({**as_object(response), **values}, "status_code", "statusCode", "http_status"),
        more={name: values[name] for name in ("tools", "response_format") if name in values},
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
