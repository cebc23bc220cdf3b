"""MLflow traces in the store that the tracking URI names: finished spans written in batches, traces read as JSON.

Spans carry their own times and ids. Five take milliseconds in SQLite, so write from a background thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from smallfirst.errors import ConfigError
from smallfirst.paths import tracking_uri
from smallfirst.registry.runs import client, experiment_id, store_errors

if TYPE_CHECKING:
    from mlflow.entities import Span

MODEL = "mlflow.llm.model"
PROVIDER = "mlflow.llm.provider"
TOKENS = "mlflow.chat.tokenUsage"
COST = "mlflow.llm.cost"
INPUTS = "mlflow.spanInputs"
OUTPUTS = "mlflow.spanOutputs"
KIND = "mlflow.spanType"
_TRACE = "mlflow.traceRequestId"
_PAGE = 100


class TraceSpan(NamedTuple):
    """One span of a trace."""

    name: str
    kind: str
    """MLflow's span type: CHAT_MODEL, CHAIN, TASK, …"""
    trace_id: int
    """128 bits, equal for all spans of a trace."""
    span_id: int
    """64 bits."""
    parent_id: int | None
    """64 bits; None for the root."""
    start_ns: int
    """Since 1970."""
    end_ns: int
    attributes: Mapping[str, Any]


class TraceStore:
    """Writes the traces of one experiment."""

    def __init__(self, experiment: str) -> None:
        self._experiment, self._experiment_id = experiment, ""
        self._uri = tracking_uri()  # written from a thread, which does not know the task's state folder

    def write(self, spans: Sequence[TraceSpan]) -> None:
        """Write the spans; all spans of a trace must come in one call. Raises SmallfirstError if the store refuses."""
        if not self._experiment_id:
            self._experiment_id = experiment_id(client(self._uri), self._experiment)
        from mlflow.tracing.client import TracingClient

        with store_errors():
            TracingClient(self._uri).log_spans(self._experiment_id, [to_mlflow_span(span) for span in spans])


def read_traces(experiment: str) -> Iterator[str]:
    """Yield the traces of an experiment with their spans as JSON, newest first. Raise ConfigError if there is none."""
    mlflow_client = client(tracking_uri())
    with store_errors():
        found = mlflow_client.get_experiment_by_name(experiment)
    if found is None:
        raise ConfigError(f'MLflow has no experiment "{experiment}"', hint="set MLFLOW_TRACKING_URI to its store")
    token: str | None = None
    while True:
        with store_errors():
            page = mlflow_client.search_traces(
                locations=[found.experiment_id], max_results=_PAGE, page_token=token, order_by=["timestamp_ms DESC"]
            )
        yield from (trace.to_json() for trace in page)
        token = page.token
        if not token:
            return


def to_mlflow_span(span: TraceSpan) -> Span:
    """Return the span as MLflow's, which keeps every attribute as JSON."""
    from mlflow.entities import Span as MlflowSpan
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

    def context(span_id: int) -> SpanContext:
        return SpanContext(span.trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    named = {**span.attributes, KIND: span.kind, _TRACE: f"tr-{span.trace_id:032x}"}
    return MlflowSpan(
        ReadableSpan(
            name=span.name,
            context=context(span.span_id),
            parent=None if span.parent_id is None else context(span.parent_id),
            resource=Resource({"service.name": "smallfirst"}),
            attributes={name: json.dumps(value, ensure_ascii=False) for name, value in named.items()},
            status=Status(StatusCode.OK),
            start_time=span.start_ns,
            end_time=span.end_ns,
        )
    )
