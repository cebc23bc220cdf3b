"""Evaluations in MLflow: figures on the training run, and per path a run in the form of `mlflow.genai.evaluate`.

MLflow's own views compare runs of that kind row by row: they look for the run type, the dataset's digest, traces that
name their run, and assessments with the same names. All paths show the same rows, chosen by content. A row costs about
25 ms in a SQLite store (5 s for 200), hence `MAX_TRACES`; figures always come from every row.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smallfirst.errors import SmallfirstError
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.paths import tracking_uri
from smallfirst.registry.runs import TrackedRun, client, open_run, store_errors
from smallfirst.stats.intervals import Estimate

if TYPE_CHECKING:
    from mlflow.entities import Assessment, DatasetInput, Span, TraceInfo

log = logging.getLogger(__name__)

MAX_TRACES = 200
PREVIEW_CHARS = 1000  # MLflow's own limit

# Names that MLflow reads, written out because some are newer than the oldest MLflow that will do.
_PARENT_RUN, _RUN_TYPE, _EVALUATE = "mlflow.parentRunId", "mlflow.runType", "genai_evaluate"
_SOURCE_RUN, _ASSESSED_BY = "mlflow.sourceRun", "mlflow.assessment.sourceRunId"
_TRACE_NAME, _SCHEMA = "mlflow.traceName", "mlflow.trace_schema.version"


def log_evaluation(run_id: str, evaluation: Evaluation) -> str:
    """The path inside the run at which the whole evaluation, rows included, was stored as JSON.

    Its figures become metrics named `<candidate>/<split>/<figure>`, with `.low` and `.high` where there is an interval.
    An evaluation on test rows becomes a run of its own as well, see `log_evaluation_run`. Raises SmallfirstError if the
    store refuses.
    """
    run = TrackedRun(client(), run_id)
    _write(run, {f"{evaluation.candidate}/{evaluation.split}/{k}": v for k, v in _figures(evaluation).items()})
    path = run.log_json(f"evaluations/{evaluation.candidate}-{evaluation.split}", evaluation)
    if evaluation.split == "test":
        log_evaluation_run(run_id, evaluation)
    return path


def log_evaluation_run(parent_run_id: str, evaluation: Evaluation, *, most_traces: int = MAX_TRACES) -> str:
    """The id of a new run under the parent, as `mlflow.genai.evaluate` would have left it.

    Up to `most_traces` rows become traces with the gold answer as expectation `expected_response` and the assessments
    `correct` and `score`; two evaluations of the same rows show the same ones. Traces that the store refuses are
    reported and left out. Raises SmallfirstError if it refuses the run or its figures.
    """
    store = client()
    with store_errors():
        experiment = store.get_experiment(store.get_run(parent_run_id).info.experiment_id)
    rows = sample_rows(evaluation.rows, most_traces)
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
        _write(run, _compared(evaluation))
        try:
            _write_traces(experiment.experiment_id, run.run_id, evaluation, rows)
        except (SmallfirstError, NotImplementedError) as error:
            log.warning("%s has its figures but not all of its rows in MLflow: %s", name, error)
    return run.run_id


def sample_rows(rows: Sequence[EvaluatedRow], most: int) -> tuple[EvaluatedRow, ...]:
    """At most `most` rows in their order: those with the smallest content keys, which is as good as drawn by lot."""
    keys = set(sorted(row.key for row in rows)[:most])
    return tuple(row for row in rows if row.key in keys)[:most]


def _write(run: TrackedRun, figures: dict[str, float | None]) -> None:
    run.log_metrics(0, figures)
    if not run.flush():
        raise SmallfirstError(
            f"{len(figures)} figures, {next(iter(figures))} among them, were not written to run {run.run_id}",
            hint="see the warning above; then evaluate again",
        )


def _figures(evaluation: Evaluation) -> dict[str, float | None]:
    figures: dict[str, float | None] = {"n": evaluation.accuracy.n, **_spread("accuracy", evaluation.accuracy)}
    for name, estimate in evaluation.measures.items():
        figures |= _spread(name, estimate)
    for name in ("cost_usd_per_1k", "p50_ms", "p95_ms", "requests_per_s"):
        figures[name] = getattr(evaluation, name)
    return figures


def _spread(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}.low": estimate.low, f"{name}.high": estimate.high}


def _compared(evaluation: Evaluation) -> dict[str, float | None]:
    """The figures under the names that MLflow gives them: `<assessment>/mean`."""
    figures = _figures(evaluation)
    figures["accuracy/mean"] = figures["correct/mean"] = figures.pop("accuracy")
    if evaluation.rows:
        figures["score/mean"] = sum(row.score for row in evaluation.rows) / len(evaluation.rows)
    return figures


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
    # `MlflowClient.start_trace` writes to the process's one store, whatever store the client was made for, and one
    # assessment at a time; this is what it goes through in the end.
    from mlflow.tracing.client import TracingClient

    with store_errors():
        traces = TracingClient(tracking_uri())
        began_ns, spans = time.time_ns(), []
        for place, row in enumerate(rows):
            span = _span(row, evaluation, began_ns + place * 1_000_000)  # 1 ms apart, so that they sort as the rows do
            traces.start_trace(_trace(row, span, experiment_id, run_id))
            spans.append(span)
        if spans:
            traces.log_spans(experiment_id, spans)


def _span(row: EvaluatedRow, evaluation: Evaluation, began_ns: int) -> Span:
    from mlflow.entities import Span

    trace_id = f"tr-{uuid.uuid4().hex}"
    attributes = {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": "CHAIN",
        "mlflow.spanInputs": {"text": row.text},
        "mlflow.spanOutputs": row.answer,
        "mlflow.llm.model": evaluation.model,
        "mlflow.llm.cost": {"total_cost": row.cost_usd},
        "stage": row.stage,
        "certified": row.certified,
        "confidence": row.confidence,
    }
    return Span.from_dict(
        {
            "trace_id": trace_id,
            "span_id": uuid.uuid4().hex[:16],
            "parent_span_id": None,
            "name": evaluation.candidate,
            "start_time_unix_nano": began_ns,
            "end_time_unix_nano": began_ns + round(row.latency_ms * 1e6),
            "attributes": {name: _json(value) for name, value in attributes.items()},
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "events": [],
        }
    )


def _trace(row: EvaluatedRow, span: Span, experiment_id: str, run_id: str) -> TraceInfo:
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    return TraceInfo(
        trace_id=span.trace_id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=span.start_time_ns // 1_000_000,
        execution_duration=round(row.latency_ms),
        state=TraceState.OK,
        request_preview=_preview(_json({"text": row.text})),
        response_preview=_preview(_json(row.answer)),
        client_request_id=row.key,
        trace_metadata={_SOURCE_RUN: run_id, _SCHEMA: "3"},
        tags={_TRACE_NAME: span.name, "smallfirst.key": row.key},
        assessments=_assessments(row, span, run_id),
    )


def _assessments(row: EvaluatedRow, span: Span, run_id: str) -> list[Assessment]:
    from mlflow.entities import AssessmentSource, Expectation, Feedback

    about: dict[str, Any] = {"trace_id": span.trace_id, "span_id": span.span_id, "metadata": {_ASSESSED_BY: run_id}}
    scored = AssessmentSource(source_type="CODE", source_id="smallfirst")
    given = AssessmentSource(source_type="HUMAN", source_id="dataset")
    why = None if row.correct else f"expected {row.gold!r}, got {row.answer!r}"
    found: list[Assessment] = [
        Expectation(name="expected_response", value=row.gold, source=given, **about),
        Feedback(name="correct", value=row.correct, source=scored, rationale=why, **about),
        Feedback(name="score", value=row.score, source=scored, **about),
    ]
    if row.also:
        found.append(Expectation(name="also_right", value=list(row.also), source=given, **about))
    return found


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _preview(text: str) -> str:
    return text if len(text) <= PREVIEW_CHARS else text[: PREVIEW_CHARS - 1] + "…"
