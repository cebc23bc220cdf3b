"""Evaluations written to a real MLflow SQLite store and read back with MLflow's own client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.errors import SmallfirstError
from smallfirst.base.records import fingerprint
from smallfirst.base.stats.intervals import Estimate
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.registry.evaluations import log_evaluation
from smallfirst.registry.runs import client, open_run

pytestmark = pytest.mark.usefixtures("module_store")


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


def test_the_figures_and_rows_are_kept_with_the_training_run() -> None:
    evaluation = measured(split="calibration")
    with open_run("tickets", "training") as run:
        path = log_evaluation(run.run_id, evaluation)
    expected = {f"small/calibration/{name}": value for name, value in (METRICS | {"accuracy": 0.5}).items()}
    assert client().get_run(run.run_id).data.metrics == expected
    assert path == "evaluations/small-calibration.json"
    stored = Path(client().download_artifacts(run.run_id, path))
    assert Evaluation.model_validate(json.loads(stored.read_text())) == evaluation


def test_an_evaluation_of_an_unknown_run_is_an_error() -> None:
    with pytest.raises(SmallfirstError, match=r"the metrics of small were not written to run 0"):
        log_evaluation("0" * 32, measured())
