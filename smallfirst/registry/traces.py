"""MLflow traces in the store that the tracking URI names: finished spans made, traces read as JSON."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smallfirst.errors import ConfigError
from smallfirst.paths import tracking_uri
from smallfirst.registry.runs import client, store_errors

if TYPE_CHECKING:
    from mlflow.entities import Span

MODEL = "mlflow.llm.model"
TOKENS = "mlflow.chat.tokenUsage"
COST = "mlflow.llm.cost"
INPUTS = "mlflow.spanInputs"
OUTPUTS = "mlflow.spanOutputs"
KIND = "mlflow.spanType"
_TRACE = "mlflow.traceRequestId"
_PAGE = 100


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


def finished_span(name: str, start_ns: int, end_ns: int, attributes: Mapping[str, Any]) -> Span:
    """Return the only span of a new trace, from and to these times since 1970; every attribute is kept as JSON."""
    from mlflow.entities import Span as MlflowSpan
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

    trace, span = uuid.uuid4().int, uuid.uuid4().int >> 64
    named = {**attributes, KIND: "CHAIN", _TRACE: f"tr-{trace:032x}"}
    return MlflowSpan(
        ReadableSpan(
            name=name,
            context=SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)),
            resource=Resource({"service.name": "smallfirst"}),
            attributes={name: json.dumps(value, ensure_ascii=False) for name, value in named.items()},
            status=Status(StatusCode.OK),
            start_time=start_ns,
            end_time=end_ns,
        )
    )
