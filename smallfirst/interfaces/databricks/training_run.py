"""A job as Databricks' TrainingRun, which is mutable (`refresh()`) as its users expect, and TrainingEvent."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from smallfirst.base.errors import ConfigError, MissingExtra, SmallfirstError
from smallfirst.base.progress import format_duration
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import TERMINAL_STATES, Event, JobFolder

EVENT_COLUMNS = {"Type": "type", "Time": "time", "Message": "message"}
_EVENT_TYPES = {"EPOCH_FINISHED": "TRAIN_UPDATED"}
"""Databricks' names for event kinds that have another name here."""


class RunStatus(StrEnum):
    """State of a run, named as in Databricks' RunStatus."""

    PENDING = "PENDING"
    """Submitted; its process has not reported yet."""
    QUEUED = "QUEUED"
    """Waits for another run on this machine to end."""
    STARTING = "STARTING"
    """Reads its rows and weights."""
    RUNNING = "RUNNING"
    """Trains."""
    TERMINATING = "TERMINATING"
    """Was asked to stop and has not stopped yet."""
    COMPLETED = "COMPLETED"
    """The model is registered."""
    STOPPED = "STOPPED"
    """Stopped on request."""
    FAILED = "FAILED"
    """Failed; `details` says why."""

    @property
    def display_name(self) -> str:
        return self.value.capitalize()

    def is_terminal(self) -> bool:
        return self.value in TERMINAL_STATES


@dataclass
class TrainingEvent:
    """An event of a run."""

    type: str
    """CREATED, QUEUED, STARTED, DATA_VALIDATED, MODEL_INITIALIZED, TRAIN_STARTED, TRAIN_UPDATED, CHECKPOINT_SAVED,
    TRAIN_FINISHED, COMPLETED, STOPPED, FAILED; REQUEUED and RESUMED after a process died."""
    time: datetime
    message: str

    def is_terminal_state(self) -> bool:
        return self.type in TERMINAL_STATES


@dataclass
class TrainingRun:
    """A fine-tune as it was when this was read."""

    name: str
    status: RunStatus
    created_by: str
    model: str | None = None
    save_folder: str | None = None
    """Folder of the job: its log, checkpoints and model."""
    train_data_path: str | None = None
    register_to: str | None = None
    experiment_path: str | None = None
    task_type: str | None = None
    eval_data_path: str | None = None
    eval_prompts: list[str] | None = None
    custom_weights_path: str | None = None
    training_duration: str | None = None
    learning_rate: float | None = None
    context_length: int | None = None
    details: str | None = None
    """Message of the last event: the present step, or why the run failed."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    estimated_end_time: datetime | None = None
    formatted_eta: str | None = None
    """Time left, `1h 5m`; None while unknown and after the training."""
    completed_at: datetime | None = None
    """When the run ended, with whatever status."""
    submitted_config: dict[str, Any] | None = None
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
        spec, submitted = job.spec, job.spec.submitted
        run = cls(
            name=spec.name,
            status=RunStatus(job.state),
            created_by=spec.created_by,
            model=spec.model,
            save_folder=str(job.folder),
            train_data_path=submitted.get("train_data_path", spec.train_rows),
            register_to=spec.register_to,
            experiment_path=spec.experiment,
            task_type=submitted.get("task_type"),
            eval_data_path=submitted.get("eval_data_path", spec.eval_rows),
            eval_prompts=[*spec.eval_prompts] or None,
            custom_weights_path=submitted.get("custom_weights_path", spec.weights),
            training_duration=spec.config.duration,
            learning_rate=spec.config.learning_rate,
            context_length=spec.config.max_seq_tokens,
            created_at=spec.created_at,
            submitted_config=submitted,
            model_version=job.result.version if job.result else None,
        )
        if job.tracking is not None:
            run.run_id, run.experiment_id = job.tracking.run_id, job.tracking.experiment_id
        if include_details:
            run.events = training_events(job.events)
            run.details = run.events[-1].message if run.events else None
            run.started_at = next((event.time for event in run.events if event.type == "STARTED"), None)
            run.completed_at = job.ended_at
            run.progress = job.progress.share if job.progress else None
            run.estimated_end_time = end = job.estimated_end
            run.formatted_eta = format_duration(end - datetime.now(UTC)) if end else None
        return run

    def refresh(self) -> TrainingRun:
        """Update this object in place and return it. Raise DatabricksGenAIResponseError if the run is gone."""
        now = TrainingRun.of(find_job(self))
        for field in fields(self):
            setattr(self, field.name, getattr(now, field.name))
        return self

    def cancel(self) -> int:
        """Ask the run to stop; return 1, or 0 if it had ended or finished training."""
        return int(queue.cancel(find_job(self, restart_dead=False)))

    def get_events(self) -> ObjectList[TrainingEvent]:
        return training_events(find_job(self).events)


class DatabricksGenAIError(SmallfirstError):
    """Base class of the errors of `foundation_model`."""


class DatabricksModelTrainingRequestError(DatabricksGenAIError):
    """A request contradicts itself or cannot be carried out."""


class DatabricksGenAIResponseError(DatabricksGenAIError):
    """A requested run does not exist."""


class ValidationError(DatabricksGenAIError, ConfigError):
    """Arguments cannot be used; the message lists every one of them."""

    exit_code = 2


def find_job(run: TrainingRun | str, *, restart_dead: bool = True) -> JobFolder:
    """Return the job of a run or of its name, restarted if its process died. Raise DatabricksGenAIResponseError."""
    try:
        return queue.find(run_name(run), restart_dead=restart_dead)
    except queue.JobNotFound as error:
        raise DatabricksGenAIResponseError(str(error.args[0]), hint=error.hint) from None


def run_name(run: object) -> str:
    """Return the name of a run, or a name as it is. Raise DatabricksGenAIResponseError for anything else."""
    if isinstance(run, TrainingRun):
        return run.name
    if isinstance(run, str):
        return run
    raise DatabricksGenAIResponseError(f"{run!r} is neither a run nor the name of one", hint="fm.list() shows them")


def training_events(events: tuple[Event, ...]) -> ObjectList[TrainingEvent]:
    """Return the events of a job under Databricks' names."""
    named = [TrainingEvent(_EVENT_TYPES.get(e.kind, e.kind), datetime.fromisoformat(e.at), e.message) for e in events]
    return ObjectList(named, EVENT_COLUMNS)


T = TypeVar("T")


class ObjectList(list[T]):
    """A list of objects of one kind, which makes a table."""

    def __init__(self, data: Iterable[T], columns: Mapping[str, str]) -> None:
        """`columns` maps each heading to the attribute shown under it."""
        super().__init__(data)
        self.columns = columns

    def to_pandas(self) -> Any:
        """Return a DataFrame of the columns. Raise MissingExtra if pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise MissingExtra("to_pandas()", "databricks") from None
        return pandas.DataFrame({name: [getattr(item, of) for item in self] for name, of in self.columns.items()})
