"""TrainingRun and TrainingEvent: a job with the attributes that code written for Databricks reads.

Unlike the records of this project a TrainingRun changes: `refresh()` writes the news into the same object, as its users
expect. It holds what was true when it was read.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from smallfirst.interfaces.databricks.exceptions import DatabricksGenAIResponseError
from smallfirst.interfaces.databricks.object_list import ObjectList, table_cell
from smallfirst.interfaces.databricks.run_status import RunStatus
from smallfirst.jobs import queue
from smallfirst.jobs.job_folder import JobFolder
from smallfirst.jobs.spec import JobProgress
from smallfirst.training.events import Event

EVENT_COLUMNS = {"Type": "type", "Time": "time", "Message": "message"}
RUN_COLUMNS = {
    "Name": "name",
    "Status": "status",
    "MLflow Run": "run_id",
    "Model": "model",
    "Learning Rate": "learning_rate",
    "Training Duration": "training_duration",
    "Train Data Path": "train_data_path",
    "Register To": "register_to",
}
_KNOWN_AS = {"EPOCH_FINISHED": "TRAIN_UPDATED"}
"""Our kinds of event that have another name there."""
_SQUARES = 10


@dataclass
class TrainingEvent:
    """Something that happened to a run."""

    type: str
    """CREATED, QUEUED, STARTED, DATA_VALIDATED, MODEL_INITIALIZED, TRAIN_STARTED, TRAIN_UPDATED, CHECKPOINT_SAVED,
    TRAIN_FINISHED, COMPLETED, STOPPED, FAILED; REQUEUED and RESUMED after a process died."""
    time: datetime
    message: str

    def is_terminal_state(self) -> bool:
        """True if nothing follows."""
        return self.type in ("COMPLETED", "FAILED", "STOPPED", "CANCELED")


@dataclass
class TrainingRun:
    """A fine-tune, as it was when this was read."""

    name: str
    status: RunStatus
    created_by: str
    model: str | None = None
    save_folder: str | None = None
    """Folder of the job: its log, checkpoints and model."""
    train_data_path: str | None = None
    register_to: str | None = None
    """Three-level name of the model."""
    submitted_experiment_path: str | None = None
    task_type: str | None = None
    eval_data_path: str | None = None
    eval_prompts: list[str] | None = None
    custom_weights_path: str | None = None
    training_duration: str | None = None
    learning_rate: float | None = None
    context_length: int | None = None
    data_prep_cluster_id: str | None = None
    details: str | None = None
    """What the last event says: why it failed, what it is doing."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    estimated_end_time: datetime | None = None
    formatted_eta: str | None = None
    """Time left, `1h 5m`; None when it is not known or over."""
    completed_at: datetime | None = None
    """When it ended, in whichever way."""
    submitted_config: dict[str, Any] | None = None
    """The arguments of create(), as they were given."""
    events: ObjectList[TrainingEvent] | None = None
    experiment_id: str | None = None
    run_id: str | None = None
    """MLflow's id of the run; None until it has started."""
    model_version: int | None = None
    """Version under which the model is registered, once it is."""
    progress: float | None = None
    """Share of the training done, in [0, 1]."""

    @classmethod
    def of(cls, job: JobFolder, *, include_details: bool = True) -> TrainingRun:
        """The job as it is now; without details no events, progress and times."""
        order, events, result = job.spec, job.events, job.result
        status = RunStatus(job.state)
        given = order.submitted
        run = cls(
            name=order.name,
            status=status,
            created_by=order.created_by,
            model=order.model,
            save_folder=str(job.folder),
            train_data_path=given.get("train_data_path", order.train_rows),
            register_to=order.register_to,
            submitted_experiment_path=order.experiment,
            task_type=given.get("task_type"),
            eval_data_path=given.get("eval_data_path", order.eval_rows),
            eval_prompts=[*order.eval_prompts] or None,
            custom_weights_path=given.get("custom_weights_path", order.weights),
            training_duration=order.config.duration,
            learning_rate=order.config.learning_rate,
            context_length=order.config.max_seq_tokens,
            data_prep_cluster_id=given.get("data_prep_cluster_id"),
            created_at=order.created_at,
            submitted_config=given,
            model_version=result.version if result else None,
        )
        if job.tracking is not None:
            run.run_id, run.experiment_id = job.tracking.run_id, job.tracking.experiment_id
        if include_details:
            run._add_details(events, job.progress)
        return run

    def refresh(self) -> TrainingRun:
        """This object, with what is true now. Raises DatabricksGenAIResponseError if the run is gone."""
        now = TrainingRun.of(find_job(self))
        for field in fields(self):
            setattr(self, field.name, getattr(now, field.name))
        return self

    def cancel(self) -> int:
        """1 if the run was asked to stop, 0 if it had ended."""
        return int(queue.cancel(find_job(self, restart_dead=False)))

    def get_events(self) -> ObjectList[TrainingEvent]:
        """What happened up to now, oldest first."""
        return training_events(find_job(self).events)

    @property
    def run_progress(self) -> str:
        """The status, and while it trains how far it is: `RUNNING ■■■□□□□□□□(30%)`."""
        if self.status is not RunStatus.RUNNING or self.progress is None:
            return str(self.status)
        full = int(_SQUARES * self.progress)
        return f"{self.status} {'■' * full}{'□' * (_SQUARES - full)}({self.progress:.0%})"

    @property
    def formatted_events(self) -> str:
        """The events as HTML, one a line."""
        return "<br>".join(f"<nobr>{html.escape(e.type)} {table_cell(e.time)}</nobr>" for e in self.events or ())

    @property
    def experiment_path(self) -> str:
        """Name of the MLflow experiment."""
        return self.submitted_experiment_path or ""

    def _repr_html_(self) -> str:
        """The run as a table of two columns, for a notebook."""
        told = {
            "Name": self.name,
            "Status": self.run_progress,
            "Details": self.details,
            "Time left": self.formatted_eta,
            "Model": self.model,
            "Train Data Path": self.train_data_path,
            "Register To": self.register_to,
            "Task Type": self.task_type,
            "Training Duration": self.training_duration,
            "Learning Rate": self.learning_rate,
            "MLflow Experiment": self.experiment_path,
            "MLflow Run": self.run_id,
            "Created": self.created_at,
            "Folder": self.save_folder,
        }
        rows = "".join(f"<tr><th>{name}</th><td>{table_cell(v)}</td></tr>" for name, v in told.items() if v is not None)
        return f"<table>{rows}</table>"

    def _add_details(self, events: tuple[Event, ...], progress: JobProgress | None) -> None:
        self.events = training_events(events)
        self.details = events[-1].message if events else None
        self.started_at = next((e.time for e in self.events if e.type == "STARTED"), None)
        if self.status.is_terminal():
            self.completed_at = self.events[-1].time
        if progress is None:
            return
        self.progress = progress.share
        trains = self.status is RunStatus.RUNNING and all(e.type != "TRAIN_FINISHED" for e in self.events)
        if trains and progress.seconds_left is not None:
            end = progress.at + timedelta(seconds=progress.seconds_left)
            if end > datetime.now(UTC):
                self.estimated_end_time = end
                self.formatted_eta = format_duration(end - datetime.now(UTC))


def find_job(run: TrainingRun | str, *, restart_dead: bool = True) -> JobFolder:
    """The job of a run or of its name, brought back if its process died. Raises DatabricksGenAIResponseError."""
    try:
        return queue.find(run_name(run), restart_dead=restart_dead)
    except queue.JobNotFound as error:
        raise DatabricksGenAIResponseError(str(error.args[0]), hint=error.hint) from None


def run_name(run: object) -> str:
    """The name of a run, or the name itself. Raises DatabricksGenAIResponseError if it is neither."""
    if isinstance(run, TrainingRun):
        return run.name
    if isinstance(run, str):
        return run
    raise DatabricksGenAIResponseError(f"{run!r} is neither a run nor the name of one", hint="fm.list() shows them")


def training_events(events: tuple[Event, ...]) -> ObjectList[TrainingEvent]:
    """Our events under the names known there."""
    told = [TrainingEvent(_KNOWN_AS.get(e.kind, e.kind), datetime.fromisoformat(e.at), e.message) for e in events]
    return ObjectList(told, EVENT_COLUMNS)


def format_duration(left: timedelta) -> str:
    """`1d 2h`, `1h 5m`, `3m 20s` or `12s`."""
    seconds = max(0, round(left.total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"
