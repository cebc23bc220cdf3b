"""Evaluations written to a real MLflow SQLite store and read back with MLflow's own client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.errors import SmallfirstError
from smallfirst.evaluation.evaluate import EvaluatedRow, Evaluation
from smallfirst.records import fingerprint
from smallfirst.registry.evaluations import log_evaluation, log_evaluation_run, sample_rows
from smallfirst.registry.runs import client, open_run
from smallfirst.stats.intervals import Estimate

pytestmark = pytest.mark.usefixtures("module_store")

if TYPE_CHECKING:
    from mlflow.entities import Run, Trace


def row(text: str, gold: str, answer: str | None, *, also: tuple[str, ...] = ()) -> EvaluatedRow:
    figures: dict[str, Any] = {"confidence": 0.9, "certified": True, "latency_ms": 12.5, "cost_usd": 0.25}
    key, correct = fingerprint([text, gold]), answer in (gold, *also)
    return evaluated_row(key, gold, answer, text=text, also=also, correct=correct, **figures)


ROWS = (
    row("my card is läte", "late", "late"),
    row("refund", "refund", "late"),
    row("hello", "other", None),
    row("pin?", "pin", "pass", also=("pass",)),
)


def measured(candidate: str = "small", rows: tuple[EvaluatedRow, ...] = ROWS, **fields: Any) -> Evaluation:
    values: dict[str, Any] = {
        "model": "tiny",
        "dataset_fingerprint": "0123456789abcdef",
        "accuracy": Estimate(value=0.5, low=0.25, high=0.75, n=4),
        "measures": {"macro_f1": Estimate(value=0.4, low=0.125, high=0.625, n=4)},
        "cost_usd_per_1k": 250.0,
    }
    return evaluation_of(rows, candidate=candidate, **(values | fields))


METRICS = {
    "n": 4.0,
    "accuracy.low": 0.25,
    "accuracy.high": 0.75,
    "macro_f1": 0.4,
    "macro_f1.low": 0.125,
    "macro_f1.high": 0.625,
    "cost_usd_per_1k": 250.0,
    "p50_ms": 5.0,
    "p95_ms": 9.0,
}


def children(run_id: str) -> list[Run]:
    found = client().get_run(run_id)
    query = f"tags.`mlflow.parentRunId` = '{run_id}'"
    return list(client().search_runs([found.info.experiment_id], query))


def traces_of(run: Run) -> dict[str, Trace]:
    found = client().search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=500)
    return {trace.data.spans[0].inputs["text"]: trace for trace in found}


def test_the_figures_and_rows_are_kept_with_the_training_run() -> None:
    evaluation = measured(split="calibration")
    with open_run("tickets", "training") as run:
        path = log_evaluation(run.run_id, evaluation)
    expected = {f"small/calibration/{name}": value for name, value in (METRICS | {"accuracy": 0.5}).items()}
    assert client().get_run(run.run_id).data.metrics == expected
    assert path == "evaluations/small-calibration.json"
    stored = Path(client().download_artifacts(run.run_id, path))
    assert Evaluation.model_validate(json.loads(stored.read_text())) == evaluation
    assert children(run.run_id) == []


def test_every_path_on_test_rows_becomes_a_run_that_mlflow_takes_for_an_evaluation() -> None:
    with open_run("tickets", "all paths") as run:
        for candidate in ("words", "small", "large"):
            log_evaluation(run.run_id, measured(candidate, note="recorded in May"))
    found = {child.data.tags["candidate"]: child for child in children(run.run_id)}
    assert sorted(found) == ["large", "small", "words"]
    small = found["small"]
    assert small.info.run_name == "small on test"
    assert small.info.status == "FINISHED"
    assert small.data.tags["mlflow.runType"] == "genai_evaluate"
    assert small.data.params["model"] == "tiny"
    assert small.data.params["n_traces"] == "4"
    assert small.data.params["note"] == "recorded in May"
    assert small.data.metrics == METRICS | {"accuracy/mean": 0.5, "correct/mean": 0.5, "score/mean": 0.5}


def test_the_rows_are_named_as_a_dataset_by_their_content() -> None:
    with open_run("tickets", "dataset") as run:
        log_evaluation(run.run_id, measured())
    (child,) = children(run.run_id)
    (given,) = child.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("tickets-test", "0123456789abcdef")
    assert json.loads(given.dataset.profile) == {"num_rows": 4}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "evaluation")]


def test_a_trace_shows_what_was_asked_and_answered_and_what_it_took() -> None:
    with open_run("tickets", "traces") as run:
        log_evaluation(run.run_id, measured())
    (child,) = children(run.run_id)
    traces = traces_of(child)
    assert sorted(traces) == ["hello", "my card is läte", "pin?", "refund"]
    trace = traces["my card is läte"]
    assert trace.info.request_preview == '{"text": "my card is läte"}'
    assert trace.info.response_preview == '"late"'
    assert trace.info.client_request_id == ROWS[0].key
    assert trace.info.execution_duration == 12
    assert trace.info.trace_metadata["mlflow.sourceRun"] == child.info.run_id
    (span,) = trace.data.spans
    assert (span.inputs, span.outputs) == ({"text": "my card is läte"}, "late")
    assert span.end_time_ns - span.start_time_ns == 12_500_000
    assert span.attributes["mlflow.llm.cost"] == {"total_cost": 0.25}
    assert (span.attributes["stage"], span.attributes["confidence"]) == ("small", 0.9)
    assert traces["hello"].data.spans[0].outputs is None
    began = [traces[row.text].info.request_time for row in ROWS]
    assert began == [began[0] + place for place in range(4)]


def test_a_trace_carries_the_gold_answer_and_how_right_the_answer_is() -> None:
    with open_run("tickets", "assessments") as run:
        log_evaluation(run.run_id, measured())
    (child,) = children(run.run_id)
    traces = traces_of(child)
    found = {a.name: a for a in traces["refund"].info.assessments}
    assert sorted(found) == ["correct", "expected_response", "score"]
    assert found["expected_response"].expectation.value == "refund"
    assert found["correct"].feedback.value is False
    assert found["correct"].rationale == "expected 'refund', got 'late'"
    assert found["score"].feedback.value == 0.0
    assert found["correct"].source.source_type == "CODE"
    assert {a.metadata["mlflow.assessment.sourceRunId"] for a in found.values()} == {child.info.run_id}
    assert {a.span_id for a in found.values()} == {traces["refund"].data.spans[0].span_id}
    either = {a.name: a for a in traces["pin?"].info.assessments}
    assert either["also_right"].expectation.value == ["pass"]
    assert either["correct"].feedback.value is True
    assert either["correct"].rationale is None


def test_of_many_rows_the_same_are_shown_for_every_path_whatever_their_order() -> None:
    rows = tuple(row(f"text {i}", "a", "a") for i in range(50))
    some = sample_rows(rows, 10)
    assert len(some) == 10
    assert {r.key for r in some} == {r.key for r in sample_rows(tuple(reversed(rows)), 10)}
    assert [rows.index(r) for r in some] == sorted(rows.index(r) for r in some)
    assert {r.key for r in some} == set(sorted(r.key for r in rows)[:10])
    assert sample_rows(rows, 100) == rows
    with open_run("tickets", "many") as run:
        child_id = log_evaluation_run(run.run_id, measured(rows=rows), max_traces=3)
    child = client().get_run(child_id)
    assert len(traces_of(child)) == 3
    assert child.data.params["n_rows"] == "50"
    assert child.data.params["n_traces"] == "3"


def test_an_evaluation_without_rows_has_figures_and_no_traces() -> None:
    with open_run("tickets", "empty") as run:
        child = client().get_run(log_evaluation_run(run.run_id, measured(rows=())))
    assert "score/mean" not in child.data.metrics
    assert traces_of(child) == {}


def test_traces_that_the_store_refuses_are_reported_and_the_figures_stay(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run("tickets", "no traces") as run:
        monkeypatch.setattr("mlflow.tracing.client.TracingClient.log_spans", _refuse)
        child = client().get_run(log_evaluation_run(run.run_id, measured()))
    assert "small on test has its metrics but not all of its rows in MLflow: no spans here" in caplog.text
    assert child.data.metrics["accuracy/mean"] == 0.5
    assert child.info.status == "FINISHED"


def _refuse(*_: object) -> None:
    raise NotImplementedError("no spans here")


def test_an_evaluation_of_an_unknown_run_is_an_error() -> None:
    with pytest.raises(SmallfirstError, match=r"small/test/n among them, were not written to run 0"):
        log_evaluation("0" * 32, measured())
    with pytest.raises(SmallfirstError, match=r"refused: .*not found"):
        log_evaluation_run("0" * 32, measured())


def test_long_texts_are_cut_in_the_preview_only() -> None:
    with open_run("tickets", "long") as run:
        child = client().get_run(log_evaluation_run(run.run_id, measured(rows=(row("x" * 3000, "a", "a"),))))
    ((text, trace),) = traces_of(child).items()
    assert len(text) == 3000
    assert len(trace.info.request_preview) == 1000
    assert trace.info.request_preview.endswith("x…")
