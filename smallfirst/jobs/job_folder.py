"""A job as stored in its folder: any process reads it, only the process that runs the job writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from smallfirst.errors import Cancelled
from smallfirst.files import is_locked, locked
from smallfirst.jobs.spec import JobProgress, JobResult, JobSpec, MlflowIds
from smallfirst.records import Record
from smallfirst.training.events import Event as Event
from smallfirst.training.events import EventLog

R = TypeVar("R", bound=Record)
State = Literal["PENDING", "QUEUED", "STARTING", "RUNNING", "TERMINATING", "COMPLETED", "STOPPED", "FAILED"]

_STATES: dict[str, State] = {
    "CREATED": "PENDING",
    "REQUEUED": "PENDING",
    "QUEUED": "QUEUED",
    "STARTED": "STARTING",
    "TRAIN_STARTED": "RUNNING",
    "RESUMED": "RUNNING",
    "COMPLETED": "COMPLETED",
    "STOPPED": "STOPPED",
    "FAILED": "FAILED",
}
"""State after each event; other events change nothing."""
TERMINAL_STATES: frozenset[str] = frozenset({"COMPLETED", "STOPPED", "FAILED"})
WAITING_STATES: frozenset[str] = frozenset({"PENDING", "QUEUED"})


class JobFolder:
    """One job on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.log = EventLog(folder / "events.jsonl")
        self.run_folder = folder / "run"
        """Folder of the training: its own events, checkpoint and model."""
        self.training_log = EventLog(self.run_folder / "events.jsonl")
        self.output = folder / "log.txt"
        """Standard output and error of the process."""
        self.lock = folder / "alive.lock"
        """Held as long as a process runs the job."""
        self._end_lock = folder / "end.lock"
        """Held while a stop is granted, the training is declared finished or the end is written."""

    @cached_property
    def spec(self) -> JobSpec:
        """Specification. Raise ConfigError if the file is damaged."""
        return JobSpec.load(self.folder / "job.json")

    @property
    def exists(self) -> bool:
        """True once the job is complete on disk: its specification is written last."""
        return (self.folder / "job.json").is_file()

    @property
    def events(self) -> tuple[Event, ...]:
        return self.log.read()

    @property
    def progress(self) -> JobProgress | None:
        return self._read(JobProgress, "progress.json")

    @property
    def tracking(self) -> MlflowIds | None:
        return self._read(MlflowIds, "mlflow.json")

    @property
    def result(self) -> JobResult | None:
        return self._read(JobResult, "result.json")

    @property
    def state(self) -> State:
        return state_after(self.events, cancelled=self.cancelled)

    @property
    def estimated_end(self) -> datetime | None:
        """When the training will end at its present rate, UTC; None unless it is under way and not overdue."""
        progress = self.progress
        under_way = self.state == "RUNNING" and all(event.kind != "TRAIN_FINISHED" for event in self.events)
        if not under_way or progress is None or progress.seconds_left is None:
            return None
        end = progress.at + timedelta(seconds=progress.seconds_left)
        return end if end > datetime.now(UTC) else None

    @property
    def ended_at(self) -> datetime | None:
        return datetime.fromisoformat(self.events[-1].at) if self.ended else None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def alive(self) -> bool:
        """True while a process runs the job or waits for its turn."""
        return is_locked(self.lock)

    @property
    def cancelled(self) -> bool:
        return self._cancel_file.exists()

    def request_stop(self) -> bool:
        """Ask the process to stop within one step, or before it begins; return False if it has finished training."""
        with locked(self._end_lock):
            kinds = [event.kind for event in self.events if event.kind in (*_STATES, "TRAIN_FINISHED")]
            if self.ended or kinds[-1:] == ["TRAIN_FINISHED"]:
                return False
            self.run_folder.mkdir(exist_ok=True)
            self._cancel_file.touch()
            return True

    def finish_training(self, message: str, **values: Any) -> None:
        """Record that only registering is left: no stop is granted any more. Raise Cancelled if one was."""
        with locked(self._end_lock):
            if self.cancelled:
                raise Cancelled("cancelled after the last step")
            self.log.append("TRAIN_FINISHED", message, **values)

    def end(self, kind: Literal["COMPLETED", "STOPPED", "FAILED"], message: str) -> None:
        """Record the end, which is final: STOPPED whatever `kind` is if a stop was granted."""
        with locked(self._end_lock):
            if not self.ended:
                self.log.append("STOPPED" if self.cancelled else kind, message)

    def clear_stop_request(self) -> None:
        self._cancel_file.unlink(missing_ok=True)

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of weights that a later job can start from: the best epoch so far, once there is one."""
        model = self.run_folder / "model"
        return [model] if (model / "smallfirst.json").is_file() else []

    @property
    def _cancel_file(self) -> Path:
        return self.run_folder / "cancel"  # the file that train() looks for; importing its name would import torch

    def _read(self, kind: type[R], name: str) -> R | None:
        path = self.folder / name
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def state_after(events: tuple[Event, ...], *, cancelled: bool) -> State:
    """Return the state of a job after `events`."""
    states = [_STATES[event.kind] for event in events if event.kind in _STATES]
    state = states[-1] if states else "PENDING"
    return "TERMINATING" if cancelled and state not in TERMINAL_STATES else state
