"""Evaluations in MLflow: metrics on the training run, and a run a candidate as `mlflow.genai.evaluate` logs it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smallfirst.errors import SmallfirstError
from smallfirst.evaluation.evaluate import EvaluatedRow, Evaluation
from smallfirst.paths import tracking_uri
from smallfirst.registry.runs import TrackedRun, client, open_run, shorten, store_errors
from smallfirst.registry.traces import COST, INPUTS, MODEL, OUTPUTS, finished_span
from smallfirst.stats.intervals import Estimate

if TYPE_CHECKING:
    from mlflow.entities import Assessment, DatasetInput, Span, TraceInfo

log = logging.getLogger(__name__)

MAX_TRACES = 200
PREVIEW_CHARS = 1000  # MLflow's own limit

# Written out because some of these names are newer than the oldest MLflow that is supported.
_PARENT_RUN, _RUN_TYPE, _EVALUATE = "mlflow.parentRunId", "mlflow.runType", "genai_evaluate"
_SOURCE_RUN, _ASSESSED_BY = "mlflow.sourceRun", "mlflow.assessment.sourceRunId"
_TRACE_NAME, _SCHEMA = "mlflow.traceName", "mlflow.trace_schema.version"


def log_evaluation(run_id: str, evaluation: Evaluation) -> str:
    """Store the whole evaluation as JSON and metrics, on test rows also as a run; return its path inside the run."""
    run = TrackedRun(client(), run_id)
    _write(run, {f"{evaluation.candidate}/{evaluation.split}/{k}": v for k, v in _metrics(evaluation).items()})
    path = run.log_json(f"evaluations/{evaluation.candidate}-{evaluation.split}", evaluation)
    if evaluation.split == "test":
        log_evaluation_run(run_id, evaluation)
    return path


def log_evaluation_run(parent_run_id: str, evaluation: Evaluation, *, max_traces: int = MAX_TRACES) -> str:
    """Log a run under the parent as `mlflow.genai.evaluate` would, and return its id.

    Up to `max_traces` rows become traces; those that the store refuses are logged and left out. Raise SmallfirstError
    if it refuses the run or its metrics.
    """
    store = client()
    with store_errors():
        experiment = store.get_experiment(store.get_run(parent_run_id).info.experiment_id)
    rows = sample_rows(evaluation.rows, max_traces)
    params = {
        "candidate": evaluation.candidate,
        "model": evaluation.model,
        "task": evaluation.task,
        "split": evaluation.split,
        "n_rows": len(evaluation.rows),
        "n_traces": len(rows),
        "note": evaluation.note,
    }
    tags = {_PARENT_RUN: parent_run_id, _RUN_TYPE: _EVALUATE, "candidate": evaluation.candidate}
    name = f"{evaluation.candidate} on {evaluation.split}"
    with open_run(experiment.name, name, params=params, tags=tags) as run:
        with store_errors():
            store.log_inputs(run.run_id, [_dataset(evaluation)])
        _write(run, _mlflow_metrics(evaluation))
        try:
            _write_traces(experiment.experiment_id, run.run_id, evaluation, rows)
        except (SmallfirstError, NotImplementedError) as error:
            log.warning("%s has its metrics but not all of its rows in MLflow: %s", name, error)
    return run.run_id


def sample_rows(rows: Sequence[EvaluatedRow], limit: int) -> tuple[EvaluatedRow, ...]:
    """Return at most `limit` rows in their order: those with the smallest content keys, which is a random sample."""
    keys = set(sorted(row.key for row in rows)[:limit])
    return tuple(row for row in rows if row.key in keys)[:limit]


def _write(run: TrackedRun, metrics: dict[str, float | None]) -> None:
    run.log_metrics(0, metrics)
    if not run.flush():
        raise SmallfirstError(
            f"{len(metrics)} metrics, {next(iter(metrics))} among them, were not written to run {run.run_id}",
            hint="see the warning above, then evaluate again",
        )


def _metrics(evaluation: Evaluation) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {"n": evaluation.accuracy.n, **with_ends("accuracy", evaluation.accuracy)}
    for name, estimate in evaluation.measures.items():
        metrics |= with_ends(name, estimate)
    for name in ("cost_usd_per_1k", "p50_ms", "p95_ms", "requests_per_s"):
        metrics[name] = getattr(evaluation, name)
    return metrics


def with_ends(name: str, estimate: Estimate) -> dict[str, float | None]:
    """Return an estimate as three metrics: value, `.low`, `.high`."""
    return {name: estimate.value, f"{name}.low": estimate.low, f"{name}.high": estimate.high}


def _mlflow_metrics(evaluation: Evaluation) -> dict[str, float | None]:
    metrics = _metrics(evaluation)
    metrics["accuracy/mean"] = metrics["correct/mean"] = metrics.pop("accuracy")
    if evaluation.rows:
        metrics["score/mean"] = sum(row.score for row in evaluation.rows) / len(evaluation.rows)
    return metrics


def _dataset(evaluation: Evaluation) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=f"{evaluation.task}-{evaluation.split}",
        digest=evaluation.dataset_fingerprint,
        source_type="smallfirst",
        source=json.dumps({"task": evaluation.task, "split": evaluation.split}),
        profile=json.dumps({"num_rows": len(evaluation.rows)}),
    )
    return DatasetInput(dataset=dataset, tags=[InputTag(key="mlflow.data.context", value="evaluation")])


def _write_traces(experiment_id: str, run_id: str, evaluation: Evaluation, rows: Sequence[EvaluatedRow]) -> None:
    # `MlflowClient.start_trace` would write to the process's global store, one assessment at a time.
    from mlflow.tracing.client import TracingClient

    with store_errors():
        traces = TracingClient(tracking_uri())
        start_ns, spans = time.time_ns(), []
        for i, row in enumerate(rows):
            span = _span(row, evaluation, start_ns + i * 1_000_000)  # 1 ms apart, so that they sort as the rows do
            traces.start_trace(_trace(row, span, experiment_id, run_id))
            spans.append(span)
        if spans:
            traces.log_spans(experiment_id, spans)


def _span(row: EvaluatedRow, evaluation: Evaluation, start_ns: int) -> Span:
    attributes = {
        INPUTS: {"text": row.text},
        OUTPUTS: row.answer,
        MODEL: evaluation.model,
        COST: {"total_cost": row.cost_usd},
        "stage": row.stage,
        "certified": row.certified,
        "confidence": row.confidence,
    }
    return finished_span(evaluation.candidate, start_ns, start_ns + round(row.latency_ms * 1e6), attributes)


def _trace(row: EvaluatedRow, span: Span, experiment_id: str, run_id: str) -> TraceInfo:
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    return TraceInfo(
        trace_id=span.trace_id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=span.start_time_ns // 1_000_000,
        execution_duration=round(row.latency_ms),
        state=TraceState.OK,
        request_preview=_preview({"text": row.text}),
        response_preview=_preview(row.answer),
        client_request_id=row.key,
        trace_metadata={_SOURCE_RUN: run_id, _SCHEMA: "3"},
        tags={_TRACE_NAME: span.name, "smallfirst.key": row.key},
        assessments=_assessments(row, span, run_id),
    )


def _assessments(row: EvaluatedRow, span: Span, run_id: str) -> list[Assessment]:
    from mlflow.entities import AssessmentSource, Expectation, Feedback

    about: dict[str, Any] = {"trace_id": span.trace_id, "span_id": span.span_id, "metadata": {_ASSESSED_BY: run_id}}
    code = AssessmentSource(source_type="CODE", source_id="smallfirst")
    human = AssessmentSource(source_type="HUMAN", source_id="dataset")
    reason = None if row.correct else f"expected {row.gold!r}, got {row.answer!r}"
    found: list[Assessment] = [
        Expectation(name="expected_response", value=row.gold, source=human, **about),
        Feedback(name="correct", value=row.correct, source=code, rationale=reason, **about),
        Feedback(name="score", value=row.score, source=code, **about),
    ]
    if row.also:
        found.append(Expectation(name="also_right", value=list(row.also), source=human, **about))
    return found


def _preview(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), PREVIEW_CHARS)
