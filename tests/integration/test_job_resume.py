"""Who goes on, and how often: restarts without progress are counted, people may have an ended job go on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smallfirst.errors import ConfigError
from smallfirst.jobs import queue, training_slots
from smallfirst.jobs import worker as process
from smallfirst.jobs.job_folder import JobFolder
from smallfirst.jobs.rows import JobRows
from smallfirst.jobs.spec import JobSpec
from smallfirst.registry.runs import client, open_run

LaidDown = Callable[[JobSpec], JobFolder]
Eventually = Callable[[Callable[[], Any]], Any]


@pytest.fixture(autouse=True)
def _machine_is_taken(jobs_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No job here gets its turn, so none of their processes does more than wait."""
    monkeypatch.setattr(tempfile, "tempdir", str(jobs_home))  # as TMPDIR says to the processes
    slot = training_slots.take_slot()
    assert slot is not None
    yield
    os.close(slot)


def kinds(job: JobFolder) -> list[str]:
    return [event.kind for event in job.events]


def stopped(job: JobFolder, eventually: Eventually) -> None:
    assert queue.cancel(job)
    eventually(lambda: job.ended)


def test_a_job_that_gets_on_is_started_again_as_often_as_need_be(
    order: JobSpec, laid_down: LaidDown, eventually: Eventually
) -> None:
    job = laid_down(order.model_copy(update={"name": "preempted"}))
    for _ in range(2 * queue.MAX_RESTARTS):
        job.log.append("REQUEUED", "")
        job.log.append("CHECKPOINT_SAVED", "")
    assert queue.find("preempted").alive
    assert kinds(job).count("REQUEUED") == 2 * queue.MAX_RESTARTS + 1
    stopped(job, eventually)


def test_a_job_that_no_longer_gets_on_is_given_up(order: JobSpec, laid_down: LaidDown) -> None:
    job = laid_down(order.model_copy(update={"name": "stuck"}))
    for kind in ("REQUEUED", "CHECKPOINT_SAVED", *["REQUEUED", "EPOCH_FINISHED"] * queue.MAX_RESTARTS):
        job.log.append(kind, "")  # type: ignore[arg-type]
    assert queue.find("stuck").state == "FAILED"
    assert "died 4 times without progress" in job.events[-1].message
    assert "smallfirst jobs resume stuck" in job.events[-1].message


@pytest.mark.parametrize("end", ["STOPPED", "FAILED"])
def test_a_person_may_have_an_ended_job_go_on(
    end: Any, order: JobSpec, laid_down: LaidDown, eventually: Eventually
) -> None:
    job = laid_down(order.model_copy(update={"name": f"ended-{end.lower()}"}))
    for kind in (*["REQUEUED"] * queue.MAX_RESTARTS, end):
        job.log.append(kind, "")
    job.request_stop()
    assert queue.resume(job, by="somebody")
    eventually(lambda: job.state == "QUEUED")  # a process waits for the machine; nobody wants it to stop any more
    assert [event.message for event in job.events if event.kind == "REQUEUED"][-1].startswith("resumed by somebody")
    assert queue.resume(job, by="somebody") is False
    os.kill(process_number(job), 9)
    eventually(lambda: not job.alive)
    assert queue.find(job.name).alive  # earlier restarts no longer count
    stopped(job, eventually)


def process_number(job: JobFolder) -> int:
    """Of the process whose command names the job's folder."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        if str(job.folder).encode() in place.read_bytes().split(b"\0"):
            return int(place.parent.name)
    raise AssertionError("no process carries it out")


def test_a_job_that_is_completed_does_not_go_on(order: JobSpec, laid_down: LaidDown) -> None:
    job = laid_down(order.model_copy(update={"name": "done"}))
    job.log.append("COMPLETED", "")
    with pytest.raises(ConfigError, match="done is completed"):
        queue.resume(job, by="somebody")
    assert kinds(job) == ["CREATED", "COMPLETED"]
    assert not job.alive


def test_an_mlflow_run_that_was_opened_but_not_noted_does_not_stay_open(order: JobSpec, laid_down: LaidDown) -> None:
    job = laid_down(order.model_copy(update={"name": "killed-early"}))
    other = open_run("toys", "other", tags={"job": "other"})
    lost = open_run("toys", "killed-early", tags={"job": "killed-early"})  # here the process was killed
    job.log.append("REQUEUED", "")
    tracked = process._open_mlflow_run(job, JobRows.read(job.spec))
    found = {run_id: client().get_run(run_id).info.status for run_id in (lost.run_id, tracked.run_id, other.run_id)}
    assert found == {lost.run_id: "KILLED", tracked.run_id: "RUNNING", other.run_id: "RUNNING"}
    assert job.tracking is not None
    assert job.tracking.run_id == tracked.run_id
    job.log.append("STOPPED", "")
