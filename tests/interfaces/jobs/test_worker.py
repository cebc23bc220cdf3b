"""The process of a job: its training slot, and its one end."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from fixtures.jobs import create_job, event_kinds

from smallfirst.base.errors import ConfigError
from smallfirst.interfaces.jobs import queue, worker
from smallfirst.interfaces.jobs.job_folder import JobSpec
from smallfirst.training.events import EventLog


def test_a_machine_has_one_slot_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.tempfile, "gettempdir", lambda: str(tmp_path))
    first = worker.take_slot()
    assert first is not None
    assert worker.take_slot() is None
    monkeypatch.setenv(worker.AT_ONCE, "2")
    second = worker.take_slot()
    assert second is not None
    assert worker.take_slot() is None
    os.close(first)
    os.close(second)
    for wrong in ("none", "0", "-1"):
        monkeypatch.setenv(worker.AT_ONCE, wrong)
        with pytest.raises(ConfigError, match=f'SMALLFIRST_JOBS_AT_ONCE is "{wrong}"'):
            worker.take_slot()


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
