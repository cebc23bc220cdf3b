"""Databricks' `foundation_model` on this machine: `fm.create(…)` returns at once, and a process of its own trains.

    from smallfirst import foundation_model as fm
    run = fm.create("HuggingFaceTB/SmolLM2-135M-Instruct", "train.jsonl", "main.claims.desk", training_duration="3ep")
    fm.get_events(run, follow=True)

Functions and arguments are those of databricks-genai 1.1.8. Unlike it, invalid values are refused before anything
starts, rows that are too long are named, not cut, and one run trains at a time.
"""

from __future__ import annotations

import builtins
import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from smallfirst import Dataset, TrainConfig
from smallfirst.base.errors import ConfigError, DataError, MissingExtra, SmallfirstError, did_you_mean
from smallfirst.base.progress import format_duration
from smallfirst.base.records import Record, parse_record
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import (
    TERMINAL_STATES,
    Event,
    JobFolder,
    JobRows,
    JobSpec,
    context_length,
    new_job_name,
    parse_duration,
    read_rows,
    require_training_packages,
    trainable_models,
    user_name,
    utc_now,
    weights_folder,
)

__all__ = ["cancel", "create", "get", "get_checkpoints", "get_events", "get_models", "list"]

RECIPES: dict[str, Literal["chat", "text"]] = {
    "CHAT_COMPLETION": "chat",
    "INSTRUCTION_FINETUNE": "chat",
    "CONTINUED_PRETRAIN": "text",
}
DEFAULT_DURATION = "1ep"
DEFAULT_CONTEXT_LENGTH = {"chat": 2048, "text": 512}
"""Longest row (chat) or window (text) in tokens if `context_length` is not given, unless the model takes less."""
MIN_USEFUL_LEARNING_RATE = 1e-6
"""Rates below this are for another optimizer: AdamW at Databricks' 5e-7 moves the weights of a small model by less than
their precision."""
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
MODEL_COLUMNS = {"Model Name": "display_name", "Input Name": "name", "Maximum Context Length": "max_context_length"}

EVENT_COLUMNS = {"Type": "type", "Time": "time", "Message": "message"}
_EVENT_TYPES = {"EPOCH_FINISHED": "TRAIN_UPDATED"}
"""Databricks' names for event kinds that have another name here."""
T = TypeVar("T")


class DatabricksGenAIError(SmallfirstError):
    """Base class of the errors of `foundation_model`."""


class DatabricksModelTrainingRequestError(DatabricksGenAIError):
    """A request contradicts itself or cannot be carried out."""


class DatabricksGenAIResponseError(DatabricksGenAIError):
    """A requested run does not exist."""


class ValidationError(DatabricksGenAIError, ConfigError):
    """Arguments cannot be used; the message lists every one of them."""

    exit_code = 2


class RunStatus(StrEnum):
    """State of a run, named as in Databricks' RunStatus and as the state of its job."""

    PENDING = "PENDING"
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    TERMINATING = "TERMINATING"
    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"

    @property
    def display_name(self) -> str:
        return self.value.capitalize()

    def is_terminal(self) -> bool:
        return self.value in TERMINAL_STATES


class ObjectList(builtins.list[T]):
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
    eval_prompts: builtins.list[str] | None = None
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


RunOrName = TrainingRun | str


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


@dataclass
class TrainableModel:
    """A base model that `create` takes."""

    name: str
    """Value of the argument `model`."""
    display_name: str
    max_context_length: int | None
    """In tokens; None until the weights are on this machine."""


def create(
    model: str,
    train_data_path: str,
    register_to: str,
    *,
    experiment_path: str | None = "",
    task_type: str | None = "CHAT_COMPLETION",
    eval_data_path: str | None = None,
    eval_prompts: Sequence[str] | None = None,
    custom_weights_path: str | None = None,
    training_duration: str | None = None,
    learning_rate: float | str | None = None,
    context_length: int | None = None,
    validate_inputs: bool | None = True,
    data_prep_cluster_id: str | None = None,
    config: TrainConfig | None = None,
) -> TrainingRun:
    """Start a run, which trains in a process of its own and outlives this one, and return it.

    Args:
        model: Hub name, name in the catalogue (`get_models()`), or a local folder of weights.
        train_data_path: Address of the rows: a file or folder; `[dbfs:]/Volumes/…` below SMALLFIRST_VOLUMES; a
            Delta table `catalog.schema.table` below SMALLFIRST_TABLES.
        register_to: `catalog.schema.model`; with `catalog.schema` the model is named after the run.
        experiment_path: MLflow experiment; `register_to` if empty.
        task_type: CHAT_COMPLETION (rows of `messages`), INSTRUCTION_FINETUNE (`prompt` and `response`) or
            CONTINUED_PRETRAIN (text files or rows of text).
        eval_data_path: Rows of the same kind, whose mean loss selects the best epoch.
        eval_prompts: Prompts answered after each epoch; the answers are in the MLflow run under eval_prompts/.
        custom_weights_path: Folder of safetensors to start from, such as one of `get_checkpoints()`.
        training_duration: `3ep`, `300ba` or `1_000_000tok`; 1ep if not given.
        learning_rate: Peak of AdamW, as a number or text; 2e-4 if not given.
        context_length: Longest row in tokens; a longer one is refused by line. For texts the length of a window.
        validate_inputs: Read all rows and look for the weights now; False leaves both to the run's process.
        data_prep_cluster_id: Not used: rows are read on this machine.
        config: Not in databricks-genai: every other setting of the training, such as `TrainConfig(method="lora")`.

    Raise ValidationError with every argument that breaks a rule and every bad row, MissingExtra without torch.
    """
    arguments = parse_arguments(**locals())
    spec = arguments.job_spec()
    rate = spec.config.learning_rate
    if rate < MIN_USEFUL_LEARNING_RATE:
        warnings.warn(
            f"learning_rate={rate:g} hardly changes a small model: such rates are for Lion on models of billions of "
            f"weights, this is AdamW. Leave it out ({TrainConfig().learning_rate:g})",
            stacklevel=2,
        )
    rows = _read_rows(spec) if arguments.validate_inputs else None
    run = TrainingRun.of(queue.submit(spec, rows))
    if "ipykernel" in sys.modules:
        print(f"{run.name} is submitted; its curves are in the MLflow experiment {run.experiment_path}")
    return run


def get(training_run: RunOrName) -> TrainingRun:
    """Return the run as it is now. Raise DatabricksGenAIResponseError if there is none of this name."""
    return TrainingRun.of(find_job(training_run))


def list(
    training_runs: Iterable[RunOrName] | None = None,
    experiment_id: str | None = None,
    *,
    statuses: Iterable[str | RunStatus] | None = None,
    user_emails: Iterable[str] | None = None,
    before: str | datetime | None = None,
    after: str | datetime | None = None,
    include_details: bool = True,
    limit: int | None = 100,
) -> ObjectList[TrainingRun]:
    """Return the runs that match every filter, newest first, at most `limit` (None: all).

    `before` and `after` (included) are times of creation; text is ISO 8601, in local time unless it names a zone. Raise
    ValidationError for a time or status that cannot be read.
    """
    names = None if training_runs is None else {run_name(run) for run in training_runs}
    chosen = None if statuses is None else {_status(status) for status in statuses}
    users = None if user_emails is None else {*user_emails}
    since, until = _time("after", after), _time("before", before)
    runs = [TrainingRun.of(job, include_details=include_details) for job in queue.all_jobs()]
    found = [
        run
        for run in runs
        if (names is None or run.name in names)
        and (experiment_id is None or run.experiment_id == str(experiment_id))
        and (chosen is None or run.status in chosen)
        and (users is None or run.created_by in users)
        and (since is None or (run.created_at and run.created_at >= since))
        and (until is None or (run.created_at and run.created_at < until))
    ]
    return ObjectList(found[:limit], RUN_COLUMNS)


def cancel(runs: RunOrName | Iterable[RunOrName] | None = None, experiment_id: str | None = None) -> int:
    """Ask the given runs, or all of an experiment, to stop; return how many had not ended.

    Raise DatabricksModelTrainingRequestError unless exactly one argument is given, DatabricksGenAIResponseError for an
    unknown name.
    """
    if (runs is None) == (experiment_id is None):
        raise DatabricksModelTrainingRequestError(
            "either runs or experiment_id must be given, not both", hint="fm.cancel(run) or fm.cancel(experiment_id=…)"
        )
    if runs is None:
        runs = list(experiment_id=experiment_id, limit=None)
    named = [runs] if isinstance(runs, str | TrainingRun) else [*runs]
    chosen = [find_job(run, restart_dead=False) for run in named]
    stopped = [job.name for job in chosen if queue.cancel(job)]
    print(f"stopping {', '.join(stopped)}" if stopped else "no run to stop")
    return len(stopped)


def get_events(training_run: RunOrName, follow: bool = False) -> ObjectList[TrainingEvent]:
    """Return the events of the run, oldest first; with `follow`, print each as it happens until the run has ended."""
    job = find_job(training_run)
    if follow:
        for event in queue.follow(job):
            print(event.in_one_line, flush=True)
    return training_events(job.events)


def get_checkpoints(training_run: RunOrName) -> builtins.list[str]:
    """Return folders for `custom_weights_path`: the best epoch so far, or none before the first epoch has ended."""
    found = [str(folder) for folder in find_job(training_run).checkpoints]
    if not found:
        print("no checkpoint yet: the first one is there after the first epoch")
    return found


def get_models() -> ObjectList[TrainableModel]:
    """Return the trainable models of the catalogue; `create` takes any other of the hub or a folder too."""
    models = [TrainableModel(name, name.rpartition("/")[2], limit) for name, limit in trainable_models().items()]
    return ObjectList(models, MODEL_COLUMNS)


def _read_rows(spec: JobSpec) -> JobRows:
    require_training_packages()
    found: dict[str, Dataset] = {}
    problems = []
    for parameter, address in (("train_data_path", spec.train_rows), ("eval_data_path", spec.eval_rows)):
        try:
            found |= {parameter: read_rows(address, spec)} if address else {}
        except (DataError, ConfigError) as error:
            problems.append(f"{parameter}: {error}")
    if problems:
        raise ValidationError("\n".join(problems))
    return JobRows(found["train_data_path"], found.get("eval_data_path"))


def _status(value: str | RunStatus) -> RunStatus:
    name, known = str(value).strip().upper(), [*RunStatus.__members__]
    if name not in known:
        raise ValidationError(f'statuses: "{value}" is no status{did_you_mean(name, known)}', hint=", ".join(known))
    return RunStatus[name]


def _time(parameter: str, value: str | datetime | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        hint = 'write it as "2026-11-30" or "2026-11-30 18:00:00"'
        raise ValidationError(f'{parameter}: "{value}" is no time', hint=hint) from None
    return found.astimezone() if found else None


def _text(value: object) -> str:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError("must be text")
    return str(value).strip()


def _register_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){1,2}", value):
        raise ValueError(
            "must be catalog.schema or catalog.schema.model, each of letters, digits, _ and -; "
            'for example register_to="main.claims.tickets"'
        )
    return value


def _absolute(value: str) -> str:
    """Make the path of an existing file absolute: the job may run in another folder. Other addresses stay."""
    address = os.path.expanduser(value)
    return str(Path(address).absolute()) if Path(address).exists() else address


def _duration(value: str) -> str:
    parse_duration(value)
    return value


def _weights(value: str) -> str:
    try:
        return str(weights_folder(value))
    except SmallfirstError as error:
        raise _as_value_error(error) from None


def _as_value_error(error: SmallfirstError) -> ValueError:
    return ValueError(f"{error.args[0]}; {error.hint}" if error.hint else str(error.args[0]))


Text = Annotated[str, BeforeValidator(_text)]
Address = Annotated[Text, AfterValidator(_absolute)]


class CreateArguments(Record):
    """Arguments of `create`; those that are None or empty count as not given."""

    validate_inputs: bool = True
    """Look for the weights now."""
    custom_weights_path: Annotated[Text, AfterValidator(_weights)] | None = None
    model: Text
    train_data_path: Address
    register_to: Annotated[Text, AfterValidator(_register_name)]
    experiment_path: Text | None = None
    task_type: Annotated[
        Literal["CHAT_COMPLETION", "INSTRUCTION_FINETUNE", "CONTINUED_PRETRAIN"],
        BeforeValidator(lambda value: str(value).strip().upper()),
    ] = "CHAT_COMPLETION"
    eval_data_path: Address | None = None
    eval_prompts: tuple[Text, ...] = ()
    training_duration: Annotated[Text, AfterValidator(_duration)] | None = None
    learning_rate: float | None = Field(default=None, gt=0, lt=1, allow_inf_nan=False)
    context_length: int | None = Field(default=None, ge=16, strict=True)
    data_prep_cluster_id: Any = None
    config: TrainConfig | None = None

    @field_validator("model")
    @classmethod
    def _is_trainable(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("validate_inputs") and not info.data.get("custom_weights_path"):
            try:
                context_length(value)
            except SmallfirstError as error:
                raise _as_value_error(error) from None
        return value

    @field_validator("context_length")
    @classmethod
    def _fits_the_model(cls, value: int | None, info: ValidationInfo) -> int | None:
        weights = info.data.get("custom_weights_path") or info.data.get("model")
        limit = context_length(weights) if weights and info.data.get("validate_inputs") else None
        if value is not None and limit is not None and value > limit:
            raise ValueError(f"is more than the {limit} tokens that the model takes")
        return value

    def job_spec(self) -> JobSpec:
        name, recipe = new_job_name(self.model), RECIPES[self.task_type]
        limit = context_length(self.custom_weights_path or self.model) if self.validate_inputs else None
        tokens = min(DEFAULT_CONTEXT_LENGTH[recipe], limit or DEFAULT_CONTEXT_LENGTH[recipe])
        given = {
            "duration": self.training_duration,
            "learning_rate": self.learning_rate,
            "max_seq_tokens": self.context_length,
        }
        config = self.config or TrainConfig(duration=DEFAULT_DURATION, max_seq_tokens=tokens)
        return JobSpec(
            name=name,
            recipe=recipe,
            model=self.model,
            weights=self.custom_weights_path,
            train_rows=self.train_data_path,
            eval_rows=self.eval_data_path,
            eval_prompts=self.eval_prompts,
            register_to=".".join([*self.register_to.split("."), name][:3]),
            experiment=self.experiment_path or self.register_to,
            config=config.model_copy(update={key: value for key, value in given.items() if value is not None}),
            created_by=user_name(),
            created_at=utc_now(),
            submitted=self.model_dump(mode="json", exclude_unset=True, exclude={"validate_inputs"}, fallback=str),
        )


def parse_arguments(**given: Any) -> CreateArguments:
    """Return the checked arguments of `create`. Raise ValidationError listing every one that breaks a rule."""
    values = {name: value for name, value in given.items() if value is not None and value != ""}
    try:
        return parse_record(CreateArguments, values, where="arguments of create() that cannot be used")
    except ConfigError as error:
        raise ValidationError(str(error.args[0]), hint="help(foundation_model.create)") from None
