"""Traces of agents' frameworks: spans of the OpenAI Agents SDK, and runs as LangSmith keeps them of LangGraph's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smallfirst.traffic.logs.formats import NODE, Entry, LogFormat, Row
from smallfirst.traffic.logs.shapes import as_object, first

# OpenAI Agents SDK: spans as `Span.export()` gives them, alone, in a batch of its exporter, or in a list `spans`


def _agents_items(values: Row) -> list[Row]:
    """Return the traces and spans in a record."""
    held = first(values, "data", "spans")
    items = [values, *(held if isinstance(held, list) else ())]
    return [item for item in items if isinstance(item, dict) and item.get("object") in ("trace", "trace.span")]


def _agents(values: Row) -> Iterator[Entry]:
    for span in _agents_items(values):
        data = as_object(span.get("span_data"))
        if data.get("type") in ("generation", "response"):
            yield _agents_entry(span, data)


def _agents_entry(span: Row, data: Row) -> Entry:
    """Return what a span says. A `response` has its texts only where a processor of one's own has added them."""
    answer = as_object(first(data, "response", "_response"))
    asked = first(data, "input", "_input")
    if answer:
        asked = {"model": answer.get("model"), "input": asked}
    usage = as_object(data.get("usage")) or as_object(answer.get("usage"))
    return Entry(
        asked,
        answer or data.get("output"),
        id=span.get("id"),
        at=span.get("started_at"),
        end=span.get("ended_at"),
        model=data.get("model"),
        prompt_tokens=usage.get("input_tokens"),
        cached_tokens=as_object(usage.get("input_tokens_details")).get("cached_tokens"),
        completion_tokens=usage.get("output_tokens"),
        trace=span.get("trace_id"),
        error=as_object(span.get("error")).get("message"),
        more={
            **{name: answer.get(name) for name in ("instructions", "tools", "text")},
            "temperature": as_object(data.get("model_config")).get("temperature"),
        },
    )


# LangSmith: runs as its API and exports write them, alone or with their `child_runs`


def _langsmith(run: Row) -> Iterator[Entry]:
    if run["run_type"] == "llm":
        yield _langsmith_entry(run)
    for child in run.get("child_runs") or ():
        yield from _langsmith(child)


def _langsmith_entry(run: Row) -> Entry:
    asked, answer, extra = (as_object(run.get(name)) for name in ("inputs", "outputs", "extra"))
    given, metadata = as_object(extra.get("invocation_params")), as_object(extra.get("metadata"))
    said = _generated(answer.get("generations"))
    usage = {
        **run,
        **as_object(as_object(answer.get("llm_output")).get("token_usage")),
        **as_object(first(answer, "usage_metadata", "usage") or said.get("usage_metadata")),
    }
    prompts = asked.get("prompts")
    return Entry(
        {**asked, "prompt": prompts[0]} if isinstance(prompts, list) and prompts else asked,
        first(answer, "messages") or answer,
        id=first(run, "id", "run_id"),
        at=run.get("start_time"),
        end=run.get("end_time"),
        model=first({**metadata, **asked, **given}, "model", "model_name", "ls_model_name"),
        answered_by=as_object(said.get("response_metadata")).get("model_name"),
        prompt_tokens=first(usage, "prompt_tokens", "input_tokens"),
        cached_tokens=as_object(usage.get("input_token_details")).get("cache_read"),
        completion_tokens=first(usage, "completion_tokens", "output_tokens"),
        cost_usd=run.get("total_cost"),
        trace=run.get("trace_id"),
        step=metadata.get(NODE),
        error=run.get("error"),
        more={name: given.get(name) for name in ("tools", "temperature", "response_format")},
    )


def _generated(generations: Any) -> Row:
    """Return the fields of the first message that LangChain's generations hold; none if they hold texts alone."""
    while isinstance(generations, list) and generations:
        generations = generations[0]
    said = as_object(as_object(generations).get("message"))
    return as_object(said.get("kwargs")) or said


OPENAI_AGENTS = LogFormat(lambda values: bool(_agents_items(values)), _agents)
LANGSMITH = LogFormat(
    lambda values: "run_type" in values and bool({"inputs", "child_runs"} & values.keys()), _langsmith
)
