"""Langfuse: observations as its API, web page and export to blob storage write them, alone or in their traces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smallfirst.errors import Problem
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.entry import Entry, LogReader, exchange_of
from smallfirst.traffic.logs.records import LogRecord
from smallfirst.traffic.logs.shapes import as_object, first, parsed

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
                yield exchange_of(_entry(values), record)


def _entry(values: dict[str, Any]) -> Entry:
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
