"""A project: a task file with everything it names, read once and passed from stage to stage."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

from smallfirst.base.paths import state_of
from smallfirst.base.progress import Progress
from smallfirst.data.sources.load import without_collections
from smallfirst.path.project.rows import (
    Rows,
    read_rows,
    read_task,
    with_canonical_answers,
    with_harvested,
    with_independent_calibration,
    with_relabels,
)
from smallfirst.path.project.settlements import read_settlements, with_settlements, without_old_names
from smallfirst.path.project.task_file import TaskFile
from smallfirst.tasks.task import Task

if TYPE_CHECKING:
    from smallfirst.models.protocol import Model

P = ParamSpec("P")
R = TypeVar("R")


MIN_OWN_ROWS = 20
"""Selection rows of a file of their own from which they alone choose limits and starts."""


class Project(NamedTuple):
    """A task file with the rows and the task it describes."""

    file: TaskFile
    rows: Rows
    task: Task
    progress: Progress
    on_epoch: Callable[[int, float], bool] = lambda *_: False
    """Called in a fine-tune after each epoch with its number, from 1, and its score on selection rows; True ends the
    fine-tune there."""
    n_workers: int = 1
    """Processes on a Ray cluster that fine-tune a language model together."""

    @classmethod
    def read(cls, file: TaskFile, progress: Progress | None = None) -> Project:
        """Read the project of a task file. Raise DataError or ConfigError if rows or settings are wrong."""
        progress = progress or Progress()
        with without_collections(), progress.bar("reading rows", None) as report:
            settlements = read_settlements(file.folder)
            rows = with_settlements(read_rows(file, report), settlements)
            file = without_old_names(file, settlements)
            task = read_task(file, rows)
            for path in file.data.harvested:  # labels and schema are those of the file's own rows
                rows = with_harvested(rows, file.path(path), columns=file.data.columns, labels=task.closed)
            rows = with_relabels(with_canonical_answers(rows, task, file.data), file, task)
            with progress.step("looking for copies"):
                return cls(file, with_independent_calibration(rows), task, progress)


def own_validation(project: Project) -> bool:
    """Return True if only selection rows are sure to be like those that certify: a file of the user's own holds both.

    Rows split from one file, or declared alike (`data.exchangeable`), all are; and few selection rows say too little.
    """
    data = project.file.data
    return data.validation is not None and not data.exchangeable and len(project.rows.selection) >= MIN_OWN_ROWS


def small_engine(file: TaskFile) -> str:
    """Return what runs the small language model, with all that can move its probabilities; empty for PyTorch here."""
    return f"vLLM at {file.small.vllm.url}" if file.small.vllm else ""


def load_small(file: TaskFile, folder: Path, *, name: str) -> Model:
    """Return the model in a folder that training or the registry wrote, as the task's file says. Raise ConfigError."""
    from smallfirst.models.loading import load_model

    return load_model(folder, name=name, price=file.prices.machine, vllm=file.small.vllm)


def labelled_by(project: Project) -> Literal["gold", "large"]:
    """Return who labelled the calibration rows: labels of a model are never gold, whatever task.yaml says."""
    by_model = any(example.source for example in project.rows.calibration.examples)
    return "large" if by_model else project.file.routing.labels


def shown_as(label: str) -> Callable[[Callable[Concatenate[Project, P], R]], Callable[Concatenate[Project, P], R]]:
    """Let a stage, a function of a project, use the state folder of its task, wherever the process stands.

    While it runs it is shown as a step of this label, if there is one.
    """

    def decorate(stage: Callable[Concatenate[Project, P], R]) -> Callable[Concatenate[Project, P], R]:
        @functools.wraps(stage)
        def placed(project: Project, /, *args: P.args, **kwargs: P.kwargs) -> R:
            with state_of(project.file.folder), project.progress.step(label) if label else nullcontext():
                return stage(project, *args, **kwargs)

        return placed

    return decorate
