"""Requests beside their responses: bodies of the API, flywheel records, inference tables, chats, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smallfirst.errors import Problem
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.entry import Entry, LogReader, exchange_of
from smallfirst.traffic.logs.records import LogRecord
from smallfirst.traffic.logs.shapes import as_object, find_bodies, first, known_request, parsed

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
