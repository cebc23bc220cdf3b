"""Input and output files of OpenAI's and Anthropic's batches, joined by `custom_id`, in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smallfirst.errors import Problem
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.entry import Entry, LogReader, exchange_of
from smallfirst.traffic.logs.records import LogRecord
from smallfirst.traffic.logs.shapes import as_object


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
