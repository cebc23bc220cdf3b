"""Databricks' `foundation_model` on this machine: `fm.create(…)` returns at once, a process of its own trains.

    from smallfirst import foundation_model as fm
    run = fm.create("HuggingFaceTB/SmolLM2-135M-Instruct", "train.jsonl", "main.claims.desk", training_duration="3ep")
    fm.get_events(run, follow=True)

The seven functions and their arguments are those of databricks-genai 1.1.8, whose service is gone. What differs:
wrong values are refused before anything starts; rows too long are named, not cut; the learning rate is ours, since
5e-7 is made for Lion on billions of weights; one run trains at a time on a machine, the others are QUEUED. Any process
that asks about a run whose process was killed brings it back from its checkpoint.
"""

from __future__ import annotations

import builtins
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from smallfirst.data.dataset import Dataset
from smallfirst.errors import ConfigError, DataError, MissingExtra, did_you_mean
from smallfirst.interfaces.databricks.exceptions import (
    DatabricksModelTrainingRequestError,
    InvalidArgument,
    ValidationError,
)
from smallfirst.interfaces.databricks.object_list import ObjectList, PagedList
from smallfirst.interfaces.databricks.run_status import RunStatus
from smallfirst.interfaces.databricks.training_run import (
    RUN_COLUMNS,
    TrainingEvent,
    TrainingRun,
    find_job,
    run_name,
    training_events,
)
from smallfirst.interfaces.databricks.validation import CreateArguments, token_limit
from smallfirst.jobs import queue
from smallfirst.jobs.rows import JobRows, read_rows
from smallfirst.jobs.spec import JobSpec
from smallfirst.training.config import TrainConfig

__all__ = ["cancel", "create", "get", "get_checkpoints", "get_events", "get_models", "list"]

POLL_INTERVAL_S = 1.0
TIME_FORMATS = tuple(
    " ".join(filter(None, (day, clock)))
    for day in ("%Y-%m-%d", "%m-%d-%Y", "")
    for clock in ("", "%H:%M:%S", "%I:%M:%S %p")
    if day or clock
)
"""How a time may be written as text; a time alone is meant today."""
MODEL_COLUMNS = {"Model Name": "display_name", "Input Name": "name", "Maximum Context Length": "max_context_length"}

RunOrName = TrainingRun | str


@dataclass
class TrainableModel:
    """A base model that `create` takes."""

    name: str
    """What to pass as `model`."""
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
    """The run, which goes on in a process of its own, also when this one ends.

    Args:
        model: Hub name, name in the catalogue (`get_models()`), or a local folder of weights.
        train_data_path: What `data.sources` reads: a file or folder; `[dbfs:]/Volumes/…` below SMALLFIRST_VOLUMES; a
            Delta table `catalog.schema.table` below SMALLFIRST_TABLES; a hub data set `[owner/]name/split`.
        register_to: `catalog.schema.model`; with `catalog.schema` the model is named after the run.
        experiment_path: MLflow experiment; `register_to` if empty.
        task_type: CHAT_COMPLETION (rows of `messages`), INSTRUCTION_FINETUNE (`prompt` and `response`) or
            CONTINUED_PRETRAIN (text files or rows of text).
        eval_data_path: Rows of the same kind, whose mean loss chooses the best epoch.
        eval_prompts: Answered after each epoch; kept in the MLflow run under eval_prompts/.
        custom_weights_path: Folder of safetensors to begin with, such as one of `get_checkpoints()`.
        training_duration: `3ep`, `300ba` or `1_000_000tok`; 1ep if not given.
        learning_rate: Peak of AdamW, as a number or text; 2e-4 if not given.
        context_length: Longest row in tokens; a longer one is refused by line. For texts the length of a window.
        validate_inputs: Read all rows and look for the weights now; False leaves both to the run's process.
        data_prep_cluster_id: Not used: rows are read on this machine.
        config: Ours: every other setting of the training, such as `TrainConfig(method="lora")`.

    Raises ValidationError with every argument that breaks a rule and every bad row, MissingExtra without torch.
    """
    given = CreateArguments(
        model,
        train_data_path,
        register_to,
        experiment_path,
        task_type or "CHAT_COMPLETION",
        eval_data_path,
        eval_prompts,
        custom_weights_path,
        training_duration,
        learning_rate,
        context_length,
        data_prep_cluster_id,
        config,
    )
    order = given.order(look_for_weights=bool(validate_inputs))
    given.warn()
    rows = _validated(order) if validate_inputs else None
    run = TrainingRun.of(queue.submit(order, rows))
    if "ipykernel" in sys.modules:
        print(f"{run.name} is submitted; its curves are in the MLflow experiment {run.experiment_path}")
    return run


def get(training_run: RunOrName) -> TrainingRun:
    """The run as it is now. Raises DatabricksGenAIResponseError if there is none of this name."""
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
) -> PagedList[TrainingRun]:
    """Runs that fit all that is given, newest first, at most `limit`; `next_page()` has the others.

    `before` and `after` (included) are times of creation; a text is one of TIME_FORMATS, in local time. Raises
    ValidationError for a time or status that cannot be read.
    """
    names = None if training_runs is None else {run_name(run) for run in training_runs}
    wanted = None if statuses is None else {_status(status) for status in statuses}
    users = None if user_emails is None else {*user_emails}
    since, until = _time("after", after), _time("before", before)

    def fits(run: TrainingRun) -> bool:
        return (
            (names is None or run.name in names)
            and (experiment_id is None or run.experiment_id == str(experiment_id))
            and (wanted is None or run.status in wanted)
            and (users is None or run.created_by in users)
            and (since is None or (run.created_at is not None and run.created_at >= since))
            and (until is None or (run.created_at is not None and run.created_at < until))
        )

    runs = [TrainingRun.of(job, include_details=include_details) for job in queue.all_jobs()]
    return _page([run for run in runs if fits(run)], limit)


def cancel(runs: RunOrName | Iterable[RunOrName] | None = None, experiment_id: str | None = None) -> int:
    """How many runs were asked to stop: those given, or all of an experiment; ended ones do not count.

    Raises DatabricksModelTrainingRequestError unless either is given, DatabricksGenAIResponseError for an unknown name.
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
    """What happened to the run, oldest first. `follow` prints each event and returns when the run has ended."""
    events = training_events(find_job(training_run).events)
    if not follow:
        return events
    _tell(events)
    while not (events and events[-1].is_terminal_state()):
        time.sleep(POLL_INTERVAL_S)
        n_told, events = len(events), training_events(find_job(training_run).events)
        _tell(events[n_told:])
    return events


def get_checkpoints(training_run: RunOrName) -> builtins.list[str]:
    """Folders of weights that `custom_weights_path` takes: the best epoch so far; empty before the first one ended."""
    found = [str(folder) for folder in find_job(training_run).checkpoints]
    if not found:
        print("no checkpoint yet: the first one is there after the first epoch")
    return found


def get_models() -> ObjectList[TrainableModel]:
    """The base models of the catalogue that can be trained; `create` takes any other of the hub or a folder too."""
    from smallfirst.models.catalog import CATALOG, pulled_path

    models = []
    for entry in (entry for entry in CATALOG if entry.kind == "transformers"):
        folder = pulled_path(entry)
        limit = token_limit(folder) if (folder / "config.json").is_file() else None
        models.append(TrainableModel(entry.name, entry.name.rpartition("/")[2], limit))
    return ObjectList(models, MODEL_COLUMNS)


def _validated(order: JobSpec) -> JobRows:
    """The rows. Raises ValidationError if some are bad, MissingExtra if there is nothing to train with."""
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtra("Training", "train")
    found: dict[str, Dataset] = {}
    wrong = []
    for parameter, address in (("train_data_path", order.train_rows), ("eval_data_path", order.eval_rows)):
        try:
            found |= {parameter: read_rows(address, order.recipe)} if address else {}
        except (DataError, ConfigError) as error:
            wrong.append(InvalidArgument(parameter, str(error.args[0]), error.hint or "mend these rows"))
    if wrong:
        raise ValidationError.of(wrong)
    return JobRows(found["train_data_path"], found.get("eval_data_path"))


def _status(value: str | RunStatus) -> RunStatus:
    status = RunStatus.from_string(value)
    if status is RunStatus.UNKNOWN and str(value).strip().upper() != "UNKNOWN":
        known = [member.value for member in RunStatus]
        rule = f'"{value}" is no status{did_you_mean(str(value).upper(), known)}'
        raise ValidationError.of([InvalidArgument("statuses", rule, f"use {', '.join(known)}")])
    return status


def _time(parameter: str, value: str | datetime | None) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value.astimezone() if value else None
    for form in TIME_FORMATS:
        try:
            found = datetime.strptime(value.strip(), form)
        except ValueError:
            continue
        today = datetime.now()
        has_day = "%d" in form
        return (found if has_day else datetime.combine(today.date(), found.time())).astimezone()
    rule = f'"{value}" is no time'
    raise ValidationError.of([InvalidArgument(parameter, rule, 'write it as "2026-11-30" or "2026-11-30 18:00:00"')])


def _page(runs: Sequence[TrainingRun], limit: int | None) -> PagedList[TrainingRun]:
    if limit is not None and limit < 1:
        raise ValidationError.of([InvalidArgument("limit", f"{limit} is less than 1", "limit=100, or None for all")])
    size = len(runs) if limit is None else limit
    rest = runs[size:]

    def more(next_limit: int | None) -> PagedList[TrainingRun]:
        return _page(rest, next_limit or size)

    return PagedList(runs[:size], RUN_COLUMNS, more if rest else None)


def _tell(events: Iterable[TrainingEvent]) -> None:
    for event in events:
        print(f"{event.time.astimezone():%Y-%m-%d %H:%M:%S}  {event.type:<18}{event.message}", flush=True)
