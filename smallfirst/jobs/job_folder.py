"""A job as its folder tells it: any process can read it, the one that carries it out alone writes.

The state is derived from the event log and from the lock that a living process holds; nothing is stored twice that
could then disagree.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from smallfirst.files import is_locked
from smallfirst.jobs.spec import JobProgress, JobResult, JobSpec, MlflowIds
from smallfirst.records import Record
from smallfirst.training.events import Event, EventLog

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
"""The state after an event; other events change nothing."""
TERMINAL_STATES: frozenset[str] = frozenset({"COMPLETED", "STOPPED", "FAILED"})
WAITING_STATES: frozenset[str] = frozenset({"PENDING", "QUEUED"})


class JobFolder:
    """One job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.log = EventLog(folder / "events.jsonl")
        self.run_folder = folder / "run"
        """Where `train()` works: its own events, checkpoint and model."""
        self.output = folder / "log.txt"
        """What the process printed."""
        self.lock = folder / "alive.lock"
        """Held for as long as a process carries the job out."""

    @cached_property
    def order(self) -> JobSpec:
        """What was asked for. Raises ConfigError if the file is damaged."""
        return JobSpec.load(self.folder / "job.json")

    @property
    def exists(self) -> bool:
        """True once the job is complete on disk: its order is written last."""
        return (self.folder / "job.json").is_file()

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened, oldest first."""
        return self.log.read()

    @property
    def progress(self) -> JobProgress | None:
        """How far training is; None before its first step."""
        return self._read(JobProgress, "progress.json")

    @property
    def tracking(self) -> MlflowIds | None:
        """Where MLflow has the run; None before it is opened."""
        return self._read(MlflowIds, "mlflow.json")

    @property
    def result(self) -> JobResult | None:
        """What came out; None before it is registered."""
        return self._read(JobResult, "result.json")

    @property
    def state(self) -> State:
        """Where the job stands."""
        return state_after(self.events, cancelled=self.cancelled)

    @property
    def ended(self) -> bool:
        """True once it stands in a state that it will never leave."""
        return self.state in TERMINAL_STATES

    @property
    def alive(self) -> bool:
        """True while a process carries it out, waiting for its turn included."""
        return is_locked(self.lock)

    @property
    def cancelled(self) -> bool:
        """True once somebody asked it to stop."""
        return self._cancel_file.exists()

    def request_stop(self) -> None:
        """Nothing back; the process stops within one step, or before it begins."""
        self.run_folder.mkdir(exist_ok=True)
        self._cancel_file.touch()

    def clear_stop_request(self) -> None:
        """Nothing back; nobody wants the job to stop any more."""
        self._cancel_file.unlink(missing_ok=True)

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of weights that a later job can begin with: the best epoch so far, once there is one."""
        model = self.run_folder / "model"
        return [model] if (model / "smallfirst.json").is_file() else []

    def output_tail(self, n: int = 12) -> str:
        """The end of what the process printed."""
        if not self.output.is_file():
            return "(it printed nothing)"
        lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-n:]) or "(it printed nothing)"

    @property
    def _cancel_file(self) -> Path:
        return self.run_folder / "cancel"  # the name that train() looks for; importing it would import torch

    def _read(self, kind: type[R], name: str) -> R | None:
        path = self.folder / name
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def state_after(events: tuple[Event, ...], *, cancelled: bool) -> State:
    """The state of a job in which `events` have happened."""
    states = [_STATES[event.kind] for event in events if event.kind in _STATES]
    state = states[-1] if states else "PENDING"
    return "TERMINATING" if cancelled and state not in TERMINAL_STATES else state
