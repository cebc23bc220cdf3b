"""Runs in a real MLflow SQLite store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of
from fixtures.warm_processes import WarmProcess
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from smallfirst.base.errors import SmallfirstError
from smallfirst.base.stats.intervals import Estimate
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.registry import runs
from smallfirst.registry.runs import UNTRACKED, TrackedRun, client, log_evaluation, open_run, resume_run

pytestmark = pytest.mark.usefixtures("module_store")

if TYPE_CHECKING:
    from mlflow.entities import Run


def stored(run: TrackedRun) -> Run:
    return client().get_run(run.run_id)


def artifact(run: TrackedRun, path: str) -> Path:
    return Path(client().download_artifacts(run.run_id, path))


def test_a_run_keeps_its_parameters_tags_and_curve(tmp_path: Path) -> None:
    (tmp_path / "loss.txt").write_text("1 2 3")
    with open_run("tickets", "first", params={"rank": 16, "lr": 2e-4}, tags={"task": "t"}) as run:
        run.log_metrics(1, {"loss": 2.0, "tokens_per_s": 900.0})
        run.log_metrics(2, {"loss": 1.5, "tokens_per_s": None})
        run.log_artifact(tmp_path / "loss.txt")
        assert run.log_json("about/machine", {"cores": 2}) == "about/machine.json"
    found = stored(run)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first"
    assert found.data.params == {"rank": "16", "lr": "0.0002"}
    assert found.data.tags["task"] == "t"
    curve = client().get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(1, 2.0), (2, 1.5)]
    speeds = client().get_metric_history(run.run_id, "tokens_per_s")
    assert [(point.step, point.value) for point in speeds] == [(1, 900.0)]
    assert artifact(run, "loss.txt").read_text() == "1 2 3"
    assert json.loads(artifact(run, "about/machine.json").read_text()) == {"cores": 2}


def test_metrics_are_written_while_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FLUSH_INTERVAL_S", 0.0)
    with open_run("tickets", "live") as run:
        run.log_metrics(1, {"loss": 2.0})
        assert stored(run).data.metrics == {"loss": 2.0}


def test_a_store_that_fails_does_not_stop_the_training(caplog: pytest.LogCaptureFixture) -> None:
    away = TrackedRun(client(), "0" * 32)  # a run that the store does not know refuses metrics
    away.log_metrics(1, {"loss": 2.0})
    away.flush()
    assert "1 metrics wait for the tracking store" in caplog.text


def test_an_error_ends_the_run_as_failed_with_its_text() -> None:
    run = open_run("tickets", "bad")
    run.log_metrics(3, {"loss": 9.0})
    with pytest.raises(ValueError, match="loss is nan"), run:
        raise ValueError("loss is nan")
    found = stored(run)
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "ValueError: loss is nan"
    assert found.data.metrics == {"loss": 9.0}


def test_an_evaluation_is_kept_with_its_figures_and_rows_on_the_run_of_the_training() -> None:
    row = evaluated_row("k", "late", "late", text="my card is läte", correct=True, confidence=0.9)
    measures = {"macro_f1": Estimate(value=0.4, low=0.125, high=0.625, n=4)}
    accuracy = Estimate(value=0.5, low=0.25, high=0.75, n=4)
    fields = {"candidate": "small", "split": "calibration", "accuracy": accuracy, "measures": measures}
    evaluation = evaluation_of((row,), model="tiny", **fields)
    with open_run("tickets", "training") as run:
        path = log_evaluation(run.run_id, evaluation)
    found = client().get_run(run.run_id).data.metrics
    names = ("n", "accuracy", "accuracy.low", "macro_f1.high")
    assert [found[f"small/calibration/{name}"] for name in names] == [4, 0.5, 0.25, 0.625]
    assert path == "evaluations/small-calibration.json"
    assert Evaluation.model_validate(json.loads(artifact(run, path).read_text())) == evaluation
    with pytest.raises(SmallfirstError, match="refused: Run with id=0"):
        log_evaluation("0" * 32, evaluation)


def test_long_values_are_cut_and_many_parameters_accepted() -> None:
    params = {f"p{i}": i for i in range(150)} | {"labels": "x" * 7000, "a:b?": 1}
    with open_run("tickets", "wide", params=params, tags={"note": "y" * 9000}) as run:
        pass
    found = stored(run)
    assert len(found.data.params) == 152
    assert found.data.params["labels"] == "x" * 5999 + "…"
    assert found.data.params["a_b_"] == "1"
    assert found.data.tags["note"] == "y" * 5000


def test_a_password_in_the_store_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:secret@127.0.0.1/runs")
    with pytest.raises(SmallfirstError) as caught, runs.store_errors():
        raise OSError("no route")
    assert "postgresql://***@127.0.0.1/runs refused: no route" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_processes_that_create_the_same_new_store_at_once_all_succeed(tmp_path: Path, warm_parent: None) -> None:
    program = "from smallfirst.registry.runs import client; print(len(client().search_experiments()))"
    env = {"SMALLFIRST_HOME": str(tmp_path / "home"), "PYTHONPATH": ":".join(sys.path)}
    processes = [
        WarmProcess([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    assert [(out.strip(), code) for out, _, code in ended] == [(b"1", 0)] * 2, ended


def test_a_new_store_is_made_in_silence_without_telemetry_and_imports_nothing_early(tmp_path: Path) -> None:
    program = (
        "import sys, smallfirst.registry.runs, smallfirst.registry.versions\n"
        "assert 'mlflow' not in sys.modules\n"
        "with smallfirst.registry.runs.open_run('e', 'r') as run: run.log_json('a', {})\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "assert is_telemetry_disabled()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"SMALLFIRST_HOME": str(tmp_path / "home"), "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_of_an_untracked_run_nothing_is_written() -> None:
    before = {run.info.run_id for run in client().search_runs([e.experiment_id for e in client().search_experiments()])}
    run = resume_run(UNTRACKED)
    run.log_metrics(1, {"loss": 2.0})
    run.set_tags({"task": "t"})
    run.finish()
    assert log_evaluation(UNTRACKED, evaluation_of([evaluated_row("a", "yes", "yes")], candidate="words")).endswith(
        "words-test"
    )
    after = {run.info.run_id for run in client().search_runs([e.experiment_id for e in client().search_experiments()])}
    assert after == before


def test_of_a_store_whose_creation_a_full_disk_cuts_off_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(engine: Engine) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE metrics (value)")
        raise SQLAlchemyError("database or disk is full")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._initialize_tables", cut_off)
        with pytest.raises(SmallfirstError, match="disk is full"):
            client()
    assert not [path.name for path in tmp_path.iterdir() if path.name != ".smallfirst"]
    assert client().search_experiments()
    assert (tmp_path / "runs.db").is_file()
