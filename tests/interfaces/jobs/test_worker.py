"""The process of a job: its training slot, and its one end."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.jobs import create_job, event_kinds

from smallfirst.interfaces.jobs import queue, worker
from smallfirst.interfaces.jobs.job_folder import JobSpec
from smallfirst.training.events import EventLog


@pytest.mark.parametrize("registers", [True, False])
@pytest.mark.parametrize("before", ["STARTED", "MODEL_INITIALIZED", "TRAIN_FINISHED", "last"])
def test_a_job_ends_once_whenever_it_is_cancelled(
    spec: JobSpec, jobs_home: Path, monkeypatch: pytest.MonkeyPatch, before: str, registers: bool
) -> None:
    last = "COMPLETED" if registers else "FAILED"
    version = {} if registers else {"register_to": "no such name"}
    job = create_job(spec.model_copy(update={"name": f"cancelled-{before}-{registers}", **version}))
    granted: list[bool] = []
    canceller = threading.Thread(target=lambda: granted.append(queue.cancel(job)))
    append = EventLog.append

    def cancel_first(log: EventLog, kind: Any, message: str, **values: Any) -> Any:
        if log.path == job.log.path:
            ends.append(job.state)
            if kind == (last if before == "last" else before):
                canceller.start()
                canceller.join(0.5)  # it may have to wait for the end that is being written
                ends.append(job.state)
        return append(log, kind, message, **values)

    ends: list[str] = []
    monkeypatch.setattr(EventLog, "append", cancel_first)
    worker.main([str(job.folder)])
    canceller.join()
    ends.append(job.state)
    assert ends[-1] == ("STOPPED" if granted == [True] else last)
    cancelled = [state in ("TERMINATING", "STOPPED") for state in ends]  # both are `cancelled` in OpenAI's words
    assert cancelled == sorted(cancelled)
    assert event_kinds(job)[-1] == ends[-1]


def test_a_stop_ends_a_job_that_still_loads(spec: JobSpec, jobs_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = create_job(spec.model_copy(update={"name": "loads"}))

    def load(name: str, **_: Any) -> Path:
        job.request_stop()
        time.sleep(60)
        raise AssertionError("the stop was not seen")

    monkeypatch.setattr(worker, "say_minutes", lambda job: None)
    monkeypatch.setattr(worker, "find_weights", load)
    assert worker.main([str(job.folder)]) == 1
    assert (job.state, job.events[-1].message) == ("STOPPED", "cancelled before its first step")
