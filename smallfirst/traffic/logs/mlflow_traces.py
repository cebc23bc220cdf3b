"""MLflow traces: as JSON (`trace.to_json()`), as rows of `search_traces`, and straight from a tracking store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from smallfirst.errors import Problem
from smallfirst.registry.traces import COST, INPUTS, KIND, MODEL, OUTPUTS, TOKENS, read_traces
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.entry import Entry, LogReader, exchange_of
from smallfirst.traffic.logs.records import LogRecord
from smallfirst.traffic.logs.shapes import as_object, first, parsed

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
                yield exchange_of(_entry(span, attributes), record)
        if not found:
            yield Problem(record.path, record.line, "no span of a model (CHAT_MODEL or LLM) in the trace")


def experiment_records(address: str) -> Iterator[LogRecord]:
    """Yield the traces of an experiment in MLflow's store, newest first. Raise SmallfirstError if it has none."""
    name = address.removeprefix(ADDRESS)
    for number, text in enumerate(read_traces(name), 1):
        yield LogRecord(address, number, json.loads(text))


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


def _entry(span: dict[str, Any], attributes: dict[str, Any]) -> Entry:
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
