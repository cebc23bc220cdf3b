"""Jobs as OpenAI's objects: their status, times, tokens, errors and the names of their models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from fixtures.finetuning_api import add_job

from smallfirst.interfaces.openai_finetuning.objects import job_id, job_object, public_message
from smallfirst.jobs.job_folder import JobProgress
from smallfirst.paths import home as state_folder


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        ((), "validating_files"),
        (("QUEUED",), "queued"),
        (("QUEUED", "STARTED"), "running"),
        (("STARTED", "TRAIN_STARTED"), "running"),
        (("STARTED", "TRAIN_STARTED", "REQUEUED"), "queued"),
        (("STARTED", "TRAIN_STARTED", "REQUEUED", "STARTED", "RESUMED"), "running"),
        (("STARTED", "COMPLETED"), "succeeded"),
        (("STARTED", "FAILED"), "failed"),
        (("STOPPED",), "cancelled"),
    ],
)
def test_every_state_has_a_status(kinds: tuple[str, ...], status: str) -> None:
    job = add_job(1, *kinds)
    shown = job_object(job)
    assert shown["status"] == status
    ended = status in ("succeeded", "failed", "cancelled")
    assert (shown["finished_at"] is not None) == ended
    assert (shown["fine_tuned_model"] is not None) == (status == "succeeded")
    assert (shown["error"] is not None) == (status == "failed")
    job.request_stop()
    assert job_object(job)["status"] == (status if ended else "cancelled")


def test_a_running_job_says_when_it_will_be_done() -> None:
    job = add_job(1, "STARTED", "TRAIN_STARTED")
    assert job_object(job)["estimated_finish"] is None
    at = datetime.now(UTC).replace(microsecond=0)
    about = {"step": 1, "epoch": 0.5, "share": 0.25, "loss": 1.0, "tokens_per_s": 100.0}
    JobProgress(**about, seconds_left=9000.0, at=at).save(job.folder / "progress.json")
    assert job_object(job)["estimated_finish"] == int(at.timestamp()) + 9000


def test_a_job_that_has_succeeded_says_how_many_tokens_it_read() -> None:
    job = add_job(1, "STARTED")
    job.log.append("TRAIN_UPDATED", "", tokens=40)
    job.log.append("TRAIN_UPDATED", "", tokens=80)
    assert job_object(job)["trained_tokens"] is None  # not before its end
    job.log.append("COMPLETED", "")
    assert job_object(job)["trained_tokens"] == 80


def test_an_error_names_the_rows_and_no_path_of_the_server(start_api: Any) -> None:
    job = add_job(1, "STARTED")
    id = "file-" + "a" * 24
    job.log.append("FAILED", f"1 of 2 rows cannot be used:\n  {id}:7  900 tokens; the limit is 512\n  next: mend it")
    other = add_job(2, "STARTED")
    other.log.append("FAILED", f"its process died 4 times; the last lines of {other.output}:\nsecret line")
    client = start_api().client()
    error = client.fine_tuning.jobs.retrieve(job.name).error
    assert error is not None
    assert (error.code, error.param) == ("invalid_file", "training_file")
    assert error.message == f"1 of 2 rows cannot be used:\n  {id}:7  900 tokens; the limit is 512"
    error = client.fine_tuning.jobs.retrieve(other.name).error
    assert error is not None
    assert (error.code, error.param, error.message) == ("training_failed", None, "its process died 4 times")
    assert public_message(f"no weights in {state_folder()}/weights", job) == "no weights in …/weights"
    (event,) = client.fine_tuning.jobs.list_events(other.name, limit=1).data
    assert (event.level, event.message) == ("error", "FAILED: its process died 4 times")


def test_only_names_of_the_form_are_looked_up() -> None:
    assert job_id("ft:a/b:smallfirst:s:" + "0" * 16) == "ftjob-" + "0" * 16
    for name in ("0" * 16, "a:" + "0" * 16, "ft:a:../" + "0" * 16, "ft:a::" + "0" * 16 + "\n", "ft:"):
        assert job_id(name) is None
