"""`smallfirst jobs`: the table, one job, JSON for programs, stopping and going on."""

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures.jobs import create_job, job_spec

from smallfirst.base.errors import ConfigError, RegistryError
from smallfirst.base.files import try_lock
from smallfirst.interfaces.cli.jobs import jobs
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import (
    JobFolder,
    JobProgress,
    JobResult,
    JobRows,
    JobSpec,
    MlflowIds,
    utc_now,
)
from smallfirst.training.config import TrainConfig


def call(*arguments: str) -> str:
    """What the command prints; an error it raises is raised here."""
    return CliRunner().invoke(jobs, arguments, catch_exceptions=False).output


def refused(*arguments: str) -> str:
    found = CliRunner().invoke(jobs, arguments).exception
    assert isinstance(found, ConfigError | queue.JobNotFound), found
    return str(found)


def add_job(name: str, age: timedelta, *kinds: str) -> JobFolder:
    """A job of this age with these events."""
    made = {"created_at": datetime.now(UTC) - age, "config": TrainConfig(duration="3ep")}
    return create_job(job_spec(name, **made), *kinds)


@pytest.fixture
def running() -> Iterator[JobFolder]:
    """A job that this process seems to run, three tenths done."""
    job = add_job("cards-b", timedelta(hours=2, minutes=5), "STARTED", "TRAIN_STARTED")
    held = try_lock(job.lock)
    JobProgress(share=0.3, seconds_left=260.0, at=utc_now()).save(job.folder / "progress.json")
    yield job
    job.log.append("STOPPED", "")
    os.close(held or -1)


@pytest.fixture
def completed() -> JobFolder:
    job = add_job("pins-a", timedelta(days=3, hours=1), "STARTED", "TRAIN_STARTED", "COMPLETED")
    JobResult(model="main.toys.desk", version=4, best_epoch=2).save(job.folder / "result.json")
    MlflowIds(run_id="abc", experiment_id="7").save(job.folder / "mlflow.json")
    return job


def test_the_table_has_the_newest_first_in_columns(running: JobFolder, completed: JobFolder) -> None:
    lines = call().splitlines()
    assert re.fullmatch(r"NAME     STATUS     BASE       PROGRESS {8,10}AGE", lines[0]), lines[0]
    assert re.fullmatch(r"cards-b  RUNNING    toys/tiny  30%, \dm \d+s left  2h 5m", lines[1]), lines[1]
    assert re.fullmatch(r"pins-a   COMPLETED  toys/tiny  - {15,17}3d 1h", lines[2]), lines[2]
    assert len({line.rindex("  ") for line in lines}) == 1
    assert len(lines) == 3


def test_a_program_reads_the_same_as_json(running: JobFolder, completed: JobFolder) -> None:
    first, second = json.loads(call("--json"))
    assert (first["name"], first["status"], first["progress"]) == ("cards-b", "RUNNING", 0.3)
    assert datetime.fromisoformat(first["eta"]) - datetime.now(UTC) == pytest.approx(
        timedelta(seconds=260), abs=timedelta(seconds=60)
    )
    assert (first["model_version"], first["ended_at"]) == (None, None)
    assert (second["register_to"], second["model_version"]) == ("main.toys.desk", 4)
    assert second["mlflow_run_id"] == "abc"
    assert second["details"] == "COMPLETED message"
    assert datetime.fromisoformat(second["ended_at"]) <= datetime.now(UTC)


def test_one_job_is_shown_with_its_events(completed: JobFolder) -> None:
    shown = call("show", "pins-a").splitlines()
    assert shown[:2] == ["name           pins-a", "status         COMPLETED"]
    assert "model_version  4" in shown
    assert [line.split()[2] for line in shown[-4:]] == ["CREATED", "STARTED", "TRAIN_STARTED", "COMPLETED"]
    told = json.loads(call("show", "pins-a", "--json"))
    assert [event["type"] for event in told["events"]] == ["CREATED", "STARTED", "TRAIN_STARTED", "COMPLETED"]
    assert told["folder"] == str(completed.folder)


def test_cancel_asks_the_running_and_tells_of_the_ended(running: JobFolder, completed: JobFolder) -> None:
    assert call("cancel", "cards-b", "pins-a").splitlines() == [
        "cards-b: asked to stop",
        "pins-a: can no longer be stopped, COMPLETED",
    ]
    assert running.cancelled
    assert call().splitlines()[1].split()[1] == "TERMINATING"


def test_resume_leaves_the_living_and_refuses_the_completed(running: JobFolder, completed: JobFolder) -> None:
    assert call("resume", "cards-b") == "cards-b: has a living process, RUNNING\n"
    assert "pins-a is completed: nothing is left" in refused("resume", "pins-a")


def test_resume_starts_the_process_of_a_stopped_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a queue of its own
    job = add_job("stopped-d", timedelta(), "STOPPED")  # its rows are nowhere: its process ends at once
    assert call("resume", "stopped-d") == "stopped-d: resumed\n"
    held = None
    while held is None:
        held = try_lock(job.lock)  # once its process has ended
    os.close(held)
    kinds = [event.kind for event in job.events]
    assert kinds == ["CREATED", "STOPPED", "REQUEUED", "FAILED"]
    assert "from the last checkpoint" in job.events[2].message


@pytest.mark.parametrize(
    ("row", "recipe"), [({"text": "The ship lies at pier 3."}, "text"), ({"prompt": "a", "response": "b"}, "chat")]
)
def test_a_job_is_created_from_rows_whose_shape_says_what_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, str], recipe: str
) -> None:
    submitted: list[tuple[JobSpec, JobRows]] = []

    def submit(spec: JobSpec, rows: JobRows) -> JobFolder:
        submitted.append((spec, rows))
        return create_job(spec)

    monkeypatch.setattr(queue, "submit", submit)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    said = call("create", "rows.jsonl", "main.texts.tales", "--base", "tiny", "--duration", "2ep", "--max-tokens", "64")
    [(spec, rows)] = submitted
    assert (spec.recipe, spec.model, spec.register_to, len(rows.train)) == (recipe, "tiny", "main.texts.tales", 1)
    assert (spec.config.duration, spec.config.max_seq_tokens) == ("2ep", 64)
    assert spec.train_rows == str(tmp_path / "rows.jsonl")  # a job may be resumed from elsewhere
    assert said == f"{spec.name}: submitted\nnext: smallfirst jobs show {spec.name} --follow\n"


def test_wrong_options_of_a_new_job_are_refused_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a text"}\n')
    rows = str(tmp_path / "rows.jsonl")
    assert "duration" in refused("create", rows, "main.texts.tales", "--duration", "long")
    with pytest.raises(RegistryError, match="tales"):
        call("create", rows, "tales")
    assert queue.all_jobs() == []
