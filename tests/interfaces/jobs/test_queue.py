"""Jobs in their turn: found, restarted, given up, cancelled. Kills are in tests/integration/test_job_kills.py."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from fixtures.jobs import Eventually, create_job, event_kinds, job_spec

from smallfirst.base.errors import Cancelled, ConfigError
from smallfirst.base.files import try_lock
from smallfirst.interfaces.jobs import queue, worker
from smallfirst.interfaces.jobs.job_folder import JobSpec, MlflowIds
from smallfirst.registry.runs import client, open_run

pytestmark = pytest.mark.usefixtures("jobs_home", "warm_jobs")


def test_a_job_that_cannot_be_done_fails_and_says_why(spec: JobSpec, eventually: Eventually) -> None:
    job = queue.submit(spec.model_copy(update={"name": "hopeless", "train_rows": "nowhere.jsonl"}))
    eventually(lambda: job.ended)
    assert event_kinds(job) == ["CREATED", "FAILED"]  # it did not wait for its turn
    assert "nowhere.jsonl: no such file" in job.events[-1].message


def test_a_job_whose_process_dies_again_and_again_is_given_up() -> None:
    job = create_job(job_spec("dying"))
    for _ in range(queue.MAX_RESTARTS):
        job.log.append("REQUEUED", "")
    job.output.write_text("Killed: out of memory\n")
    left_open = open_run("toy", "dying").run_id
    MlflowIds(run_id=left_open, experiment_id="1").save(job.folder / "mlflow.json")
    assert queue.find("dying").state == "FAILED"
    assert client().get_run(left_open).info.status == "FAILED"
    assert "died 4 times" in job.events[-1].message
    assert "Killed: out of memory" in job.events[-1].message


def test_after_progress_restarts_are_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(queue, "_start", lambda job, lock: started.append(job.name))
    job = create_job(job_spec("preempted"), *["REQUEUED", "CHECKPOINT_SAVED"] * (2 * queue.MAX_RESTARTS))
    queue.recover(job)
    assert (started, job.ended) == (["preempted"], False)
    job.log.append("STOPPED", "")


def test_a_dead_job_that_was_cancelled_is_stopped_without_a_process() -> None:
    job = create_job(job_spec("unwanted"))
    assert queue.cancel(job)
    assert event_kinds(job) == ["CREATED", "STOPPED"]
    assert queue.cancel(job) is False


def test_a_living_job_is_left_alone() -> None:
    job = create_job(job_spec("living"))
    held = try_lock(job.lock)
    queue.recover(job)
    assert event_kinds(job) == ["CREATED"]
    job.log.append("COMPLETED", "")
    os.close(held or -1)
    queue.recover(job)
    assert event_kinds(job) == ["CREATED", "COMPLETED"]


def test_an_unknown_name_is_reported_with_the_nearest(spec: JobSpec) -> None:
    create_job(job_spec("tickets-abc")).log.append("STOPPED", "")
    for wrong in ("ticket-abc", "../jobs/tickets-abc", "tickets-abc/"):
        with pytest.raises(queue.JobNotFound, match='did you mean "tickets-abc"'):
            queue.find(wrong)
    with pytest.raises(ConfigError, match='there is a job "tickets-abc" already'):
        queue.submit(spec.model_copy(update={"name": "tickets-abc"}))


def test_a_damaged_job_hides_no_other() -> None:
    damaged = create_job(job_spec("damaged"))
    (damaged.folder / "job.json").write_text("{")
    whole = create_job(job_spec("whole"))
    whole.log.append("STOPPED", "")
    names = [job.name for job in queue.all_jobs()]
    assert "whole" in names
    assert "damaged" not in names
    (damaged.folder / "job.json").unlink()


def test_the_earlier_of_two_that_wait_goes_first(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.tempfile, "gettempdir", lambda: str(tmp_path))
    early = create_job(job_spec("early"))
    late = create_job(
        spec.model_copy(update={"name": "late", "created_at": spec.created_at + timedelta(microseconds=1)})
    )
    held = try_lock(early.lock)
    naps: list[float] = []

    def nap(seconds: float) -> None:  # what happens while the late one sleeps
        naps.append(seconds)
        assert late.state == "QUEUED"
        if len(naps) == 3:
            early.log.append("STARTED", "")  # it is no longer waiting, but the machine is free

    monkeypatch.setattr(worker.time, "sleep", nap)
    with worker.wait_for_turn(late):
        assert len(naps) == 3
        assert worker.take_slot() is None
    slot = worker.take_slot()
    assert slot is not None
    os.close(slot)
    os.close(held or -1)
    for job in (early, late):
        job.log.append("STOPPED", "")


def test_a_job_cancelled_while_it_waits_never_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.tempfile, "gettempdir", lambda: str(tmp_path))
    job = create_job(job_spec("waiting"))
    taken = worker.take_slot()
    monkeypatch.setattr(worker.time, "sleep", lambda _: job.request_stop())
    with pytest.raises(Cancelled, match="before it began"), worker.wait_for_turn(job):
        pytest.fail("it began")
    os.close(taken or -1)
    job.log.append("STOPPED", "")
