"""A job read as a TrainingRun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fixtures.jobs import create_job, job_spec

from smallfirst.base.files import try_lock
from smallfirst.interfaces.databricks.training_run import (
    DatabricksGenAIResponseError,
    RunStatus,
    TrainingRun,
)
from smallfirst.interfaces.jobs.job_folder import JobFolder, JobProgress, JobResult, MlflowIds
from smallfirst.training.config import TrainConfig


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobFolder]:
    """A job that this process seems to run."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    submitted = {"train_data_path": "dbfs:/Volumes/a/b/c/rows.jsonl", "task_type": "CHAT_COMPLETION"}
    config = TrainConfig(duration="3ep", learning_rate=1e-3, max_seq_tokens=64)
    made = create_job(job_spec("tiny-1", config=config, submitted=submitted, created_by="somebody"))
    lock = try_lock(made.lock)
    yield made
    os.close(lock or -1)


def trained_until(job: JobFolder, share: float, seconds_left: float | None = 3700) -> None:
    at = datetime.now(UTC)
    JobProgress(step=3, epoch=1, share=share, loss=1, tokens_per_s=9, seconds_left=seconds_left, at=at).save(
        job.folder / "progress.json"
    )


def test_it_tells_what_was_asked_for(job: JobFolder) -> None:
    run = TrainingRun.of(job)
    told = vars(run)
    assert told["name"] == "tiny-1"
    assert told["status"] is RunStatus.PENDING
    assert (told["training_duration"], told["learning_rate"], told["context_length"]) == ("3ep", 1e-3, 64)
    assert told["train_data_path"] == "dbfs:/Volumes/a/b/c/rows.jsonl"  # as given, not as found
    assert (told["experiment_id"], told["run_id"], told["eval_prompts"]) == (None, None, None)
    assert (run.experiment_path, run.save_folder, run.created_by) == ("toys", str(job.folder), "somebody")
    assert run.created_at == datetime(2026, 11, 30, 12, tzinfo=UTC)
    assert run.submitted_config == job.spec.submitted


def test_progress_and_time_left_are_told_only_while_it_trains(job: JobFolder) -> None:
    trained_until(job, 0.34)
    assert TrainingRun.of(job).formatted_eta is None
    for kind in ("STARTED", "TRAIN_STARTED"):
        job.log.append(kind, "")  # type: ignore[arg-type]
    run = TrainingRun.of(job)
    assert (run.status, run.progress) == (RunStatus.RUNNING, 0.34)
    assert run.formatted_eta == "1h 1m"
    assert run.estimated_end_time is not None
    assert timedelta(seconds=3600) < run.estimated_end_time - datetime.now(UTC) < timedelta(seconds=3700)
    assert run.started_at is not None
    trained_until(job, 0.34, -5)
    assert TrainingRun.of(job).formatted_eta is None
    trained_until(job, 1.0)
    job.log.append("TRAIN_FINISHED", "")
    assert TrainingRun.of(job).formatted_eta is None


def test_refresh_writes_the_news_into_the_same_object(job: JobFolder) -> None:
    run = TrainingRun.of(job)
    MlflowIds(run_id="abc", experiment_id="7").save(job.folder / "mlflow.json")
    JobResult(model="main.toys.desk", version=4, best_epoch=2).save(job.folder / "result.json")
    job.log.append("COMPLETED", "registered")
    assert run.status is RunStatus.PENDING
    assert run.refresh() is run
    assert (run.status.display_name, run.details) == ("Completed", "registered")
    assert (run.register_to, run.model_version) == ("main.toys.desk", 4)
    assert (run.run_id, run.experiment_id) == ("abc", "7")
    assert run.completed_at is not None


def test_events_have_the_names_known_there(job: JobFolder) -> None:
    for kind in ("STARTED", "EPOCH_FINISHED", "FAILED"):
        job.log.append(kind, kind.lower())  # type: ignore[arg-type]
    events = TrainingRun.of(job).get_events()
    assert [event.type for event in events] == ["CREATED", "STARTED", "TRAIN_UPDATED", "FAILED"]
    assert [event.is_terminal_state() for event in events] == [False, False, False, True]
    assert events[0].time.tzinfo is not None
    assert list(events.to_pandas().columns) == ["Type", "Time", "Message"]


def test_without_details_neither_events_nor_progress(job: JobFolder) -> None:
    trained_until(job, 0.5)
    run = TrainingRun.of(job, include_details=False)
    assert (run.events, run.progress, run.details) == (None, None, None)


def test_cancel_asks_the_job_to_stop(job: JobFolder) -> None:
    run = TrainingRun.of(job)
    assert run.cancel() == 1
    assert run.refresh().status is RunStatus.TERMINATING
    job.log.append("STOPPED", "")
    assert run.cancel() == 0


def test_a_run_that_is_gone_is_told(job: JobFolder) -> None:
    run = TrainingRun.of(job)
    (job.folder / "job.json").unlink()
    with pytest.raises(DatabricksGenAIResponseError, match='no job is called "tiny-1"'):
        run.refresh()
