"""Restarts without progress are counted, and an ended job can be resumed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.jobs import Eventually, create_job, event_kinds, job_spec

from smallfirst.base.errors import ConfigError
from smallfirst.interfaces.jobs import queue, worker
from smallfirst.interfaces.jobs.job_folder import JobFolder


@pytest.fixture(autouse=True)
def _no_free_slot(jobs_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No job here gets its turn, so their processes only wait."""
    monkeypatch.setattr(tempfile, "tempdir", str(jobs_home))  # as TMPDIR says to the processes
    slot = worker.take_slot()
    assert slot is not None
    yield
    os.close(slot)


def stop(job: JobFolder, eventually: Eventually) -> None:
    assert queue.cancel(job)
    eventually(lambda: job.ended)


def test_a_job_with_progress_is_restarted_any_number_of_times(eventually: Eventually) -> None:
    job = create_job(job_spec("preempted"), *["REQUEUED", "CHECKPOINT_SAVED"] * (2 * queue.MAX_RESTARTS))
    assert queue.find("preempted").alive
    assert event_kinds(job).count("REQUEUED") == 2 * queue.MAX_RESTARTS + 1
    stop(job, eventually)


def test_a_job_without_progress_is_given_up() -> None:
    restarts = ["REQUEUED", "EPOCH_FINISHED"] * queue.MAX_RESTARTS
    job = create_job(job_spec("stuck"), "REQUEUED", "CHECKPOINT_SAVED", *restarts)
    assert queue.find("stuck").state == "FAILED"
    assert "died 4 times without progress" in job.events[-1].message
    assert "smallfirst jobs resume stuck" in job.events[-1].message


@pytest.mark.parametrize("end", ["STOPPED", "FAILED"])
def test_an_ended_job_can_be_resumed(end: str, eventually: Eventually) -> None:
    job = create_job(job_spec(f"ended-{end.lower()}"), *["REQUEUED"] * queue.MAX_RESTARTS, end)
    job.request_stop()
    assert queue.resume(job, by="somebody")
    eventually(lambda: job.state == "QUEUED")  # a process waits for a slot; the request to stop is withdrawn
    assert [event.message for event in job.events if event.kind == "REQUEUED"][-1].startswith("resumed by somebody")
    assert queue.resume(job, by="somebody") is False
    os.kill(waiting_process(job), 9)
    eventually(lambda: not job.alive)
    assert queue.find(job.name).alive  # earlier restarts no longer count
    stop(job, eventually)


def waiting_process(job: JobFolder) -> int:
    """Id of the process whose command names the job's folder."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        if str(job.folder).encode() in place.read_bytes().split(b"\0"):
            return int(place.parent.name)
    raise AssertionError("no process runs it")


def test_a_completed_job_cannot_be_resumed() -> None:
    job = create_job(job_spec("done"), "COMPLETED")
    with pytest.raises(ConfigError, match="done is completed"):
        queue.resume(job, by="somebody")
    assert event_kinds(job) == ["CREATED", "COMPLETED"]
    assert not job.alive
