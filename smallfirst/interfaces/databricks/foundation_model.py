"""Databricks' `foundation_model` on this machine: `fm.create(…)` returns at once, and a process of its own trains.

    from smallfirst import foundation_model as fm
    run = fm.create("HuggingFaceTB/SmolLM2-135M-Instruct", "train.jsonl", "main.claims.desk", training_duration="3ep")
    fm.get_events(run, follow=True)

Functions and arguments are those of databricks-genai 1.1.8. Unlike it, invalid values are refused before anything
starts, rows that are too long are named, not cut, and one run trains at a time.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from smallfirst import Dataset, TrainConfig
from smallfirst.errors import ConfigError, DataError, did_you_mean
from smallfirst.interfaces.databricks.training_run import (
    RUN_COLUMNS,
    DatabricksModelTrainingRequestError,
    ObjectList,
    PagedList,
    RunStatus,
    TrainingEvent,
    TrainingRun,
    ValidationError,
    find_job,
    run_name,
    training_events,
)
from smallfirst.interfaces.databricks.validation import parse_arguments
from smallfirst.jobs import queue
from smallfirst.jobs.base_models import require_training_packages, trainable_models
from smallfirst.jobs.job_folder import JobRows, JobSpec, read_rows

__all__ = ["cancel", "create", "get", "get_checkpoints", "get_events", "get_models", "list"]

TIME_FORMATS = tuple(
    " ".join(filter(None, (day, clock)))
    for day in ("%Y-%m-%d", "%m-%d-%Y", "")
    for clock in ("", "%H:%M:%S", "%I:%M:%S %p")
    if day or clock
)
"""Formats of a time as text; a time without a date means today."""
MODEL_COLUMNS = {"Model Name": "display_name", "Input Name": "name", "Maximum Context Length": "max_context_length"}

RunOrName = TrainingRun | str


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
            Delta table `catalog.schema.table` below SMALLFIRST_TABLES; a hub data set `[owner/]name/split`.
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
    arguments.warn()
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
) -> PagedList[TrainingRun]:
    """Return the runs that match every filter, newest first, at most `limit`; `next_page()` returns the others.

    `before` and `after` (included) are times of creation; text is in one of TIME_FORMATS, in local time. Raise
    ValidationError for a time or status that cannot be read.
    """
    names = None if training_runs is None else {run_name(run) for run in training_runs}
    chosen = None if statuses is None else {_status(status) for status in statuses}
    users = None if user_emails is None else {*user_emails}
    since, until = _time("after", after), _time("before", before)

    def matches(run: TrainingRun) -> bool:
        return (
            (names is None or run.name in names)
            and (experiment_id is None or run.experiment_id == str(experiment_id))
            and (chosen is None or run.status in chosen)
            and (users is None or run.created_by in users)
            and (since is None or (run.created_at is not None and run.created_at >= since))
            and (until is None or (run.created_at is not None and run.created_at < until))
        )

    runs = [TrainingRun.of(job, include_details=include_details) for job in queue.all_jobs()]
    return _page([run for run in runs if matches(run)], limit)


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
            found |= {parameter: read_rows(address, spec.recipe)} if address else {}
        except (DataError, ConfigError) as error:
            problems.append(f"{parameter}: {error}")
    if problems:
        raise ValidationError("\n".join(problems))
    return JobRows(found["train_data_path"], found.get("eval_data_path"))


def _status(value: str | RunStatus) -> RunStatus:
    name = str(value).strip().upper()
    if name not in RunStatus.__members__:
        known = [*RunStatus.__members__]
        raise ValidationError(
            f'statuses: "{value}" is no status{did_you_mean(name, known)}', hint=f"use {', '.join(known)}"
        )
    return RunStatus[name]


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
    hint = 'write it as "2026-11-30" or "2026-11-30 18:00:00"'
    raise ValidationError(f'{parameter}: "{value}" is no time', hint=hint)


def _page(runs: Sequence[TrainingRun], limit: int | None) -> PagedList[TrainingRun]:
    if limit is not None and limit < 1:
        raise ValidationError(f"limit: {limit} is less than 1", hint="limit=100, or None for all")
    size = len(runs) if limit is None else limit
    rest = runs[size:]

    def load_next(next_limit: int | None) -> PagedList[TrainingRun]:
        return _page(rest, next_limit or size)

    return PagedList(runs[:size], RUN_COLUMNS, load_next if rest else None)
