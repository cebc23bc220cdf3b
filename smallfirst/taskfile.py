"""task.yaml as one record: the task, its rows, the models on both paths, the gate and the promise.

One file drives every stage, so what was measured is what is served. Paths in it are relative to the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from smallfirst.data.dataset import Dataset
from smallfirst.data.load import load
from smallfirst.data.shapes import Columns
from smallfirst.data.split import split, take_share
from smallfirst.errors import ConfigError
from smallfirst.gate import Gate
from smallfirst.models.encoder import DEFAULT_ENCODER
from smallfirst.models.endpoint import EndpointConfig
from smallfirst.pricing import PriceBook
from smallfirst.records import Record, parse_record
from smallfirst.routing.certificate import Promise
from smallfirst.tasks.classify import Classify
from smallfirst.training.config import TrainConfig

Candidate = Literal["words", "encoder", "base", "small"]
LADDER: tuple[Candidate, ...] = ("words", "encoder", "base", "small")
"""Candidates that run on this machine, smallest first."""


class DataFiles(Record):
    """Where the rows are."""

    train: Path
    """Rows to learn from; also split for the files that are left out."""
    validation: Path | None = None
    """Rows to choose and calibrate with; left out: 20 % of train, by content hash."""
    test: Path | None = None
    """Rows touched once; left out: 20 % of train, by content hash."""
    open_ended: Path | None = None
    """Requests that are not the task's (column `prompt`), to see that they go to the large model."""
    columns: Columns = Columns()
    """Names of your columns, where they differ."""


class SmallConfig(Record):
    """The model to fine-tune and the rungs below it."""

    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Name, folder or GGUF file of the base model."""
    training: TrainConfig = TrainConfig()
    """How to fine-tune it."""
    encoder: str = DEFAULT_ENCODER
    """Frozen sentence encoder for the linear rung and for nearest examples."""
    ladder: tuple[Candidate, ...] = LADDER
    """Which rungs to measure."""


class LargeConfig(Record):
    """The large path: who answers, how it is asked, and where its recorded answers are."""

    endpoint: EndpointConfig | None = None
    """An OpenAI-compatible endpoint."""
    gguf: str | None = None
    """A general model run here: catalogue name or GGUF file."""
    recorded: Path | None = None
    """Recorded answers to the task's rows (`smallfirst record` makes them); replayed instead of asking again."""
    recorded_open: Path | None = None
    """Recorded answers to the open-ended requests."""
    shots_per_label: int = pydantic.Field(default=1, ge=0)
    """Solved training rows per label shown in the prompt, the same for every request."""
    nearest: int = pydantic.Field(default=0, ge=0)
    """Solved training rows nearest to the request shown in the prompt; replaces shots_per_label."""
    only_labels: bool = True
    """GGUF only: constrain the answer to the labels."""
    sample_calibration: int | None = pydantic.Field(default=None, ge=1)
    """Ask only this many calibration rows, drawn by content hash; None asks all."""
    sample_test: int | None = pydantic.Field(default=None, ge=1)
    """Ask only this many test rows, drawn by content hash; None asks all."""

    def sample(self, split: str) -> int | None:
        """How many rows of a split are asked; None means all."""
        return self.sample_test if split == "test" else self.sample_calibration

    @pydantic.model_validator(mode="after")
    def _somebody_answers(self) -> LargeConfig:
        if self.endpoint and self.gguf:
            raise ValueError("give either endpoint or gguf, not both")
        if not (self.endpoint or self.gguf or self.recorded):
            raise ValueError("give endpoint, gguf or recorded")
        return self


class RoutingConfig(Record):
    """What the Router promises and which candidate it starts with."""

    promise: Promise = Promise()
    """The promise about answers that stay small."""
    small: Literal["words", "encoder", "small", "smallest"] = "small"
    """Who drafts: the fine-tuned model, a linear one, or the smallest that passes the gate."""
    selection_share: float = pydantic.Field(default=0.2, gt=0, lt=1)
    """Share of the validation rows used to choose (epoch, temperature, domain limit); the others only certify."""


class TaskFile(Record):
    """Everything about one narrow task."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Short name; also the name of the served model."""
    kind: Literal["classify"] = "classify"
    """Kind of task."""
    about: str = ""
    """One sentence on the job, told to general models."""
    labels: tuple[str, ...] = ()
    """Allowed answers; left out: those of the training rows. A mapping gives each a description."""
    descriptions: dict[str, str] = {}
    """What belongs under a label, told to general models."""
    data: DataFiles
    """Where the rows are."""
    small: SmallConfig = SmallConfig()
    """The small path."""
    large: LargeConfig | None = None
    """The large path; without it nothing can be escalated or compared."""
    gate: Gate = Gate(accuracy_at_least=0.8)
    """What a candidate must show."""
    routing: RoutingConfig = RoutingConfig()
    """The Router."""
    register_to: str = "main.default.task"
    """Three-level model name, `catalog.schema.model`."""
    prices: PriceBook = PriceBook()
    """Machine price and token prices."""
    requests_per_month: int = pydantic.Field(default=1_000_000, ge=1)
    """Volume assumed in the report."""
    folder: Path = Path()
    """Folder of the file; set on reading."""

    def path(self, relative: Path) -> Path:
        """A path of the file, resolved against its folder."""
        return relative if relative.is_absolute() else self.folder / relative


class Rows(Record):
    """The rows of a task, split by what they may be used for."""

    train: Dataset
    """To learn from."""
    selection: Dataset
    """To choose with: epoch, temperature, domain limit."""
    calibration: Dataset
    """To certify with, used for nothing else."""
    test: Dataset
    """To measure with, touched once."""
    open_ended: Dataset | None
    """Requests that are not the task's."""


def read_taskfile(path: Path) -> TaskFile:
    """The record of a task.yaml. Raises ConfigError naming every wrong setting, with suggestions."""
    if path.is_dir():
        path = path / "task.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", hint="smallfirst init   writes a commented task.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings by name, found {type(values).__name__}")
    return parse_record(TaskFile, _unfold_labels(values, path), where=str(path))


def read_rows(task_file: TaskFile) -> Rows:
    """All rows, split. Raises DataError with every bad row of the first file that has one."""
    files = task_file.data
    labels = task_file.labels or None

    def read(path: Path) -> Dataset:
        return load(task_file.path(path), columns=files.columns, labels=labels)

    train = read(files.train)
    if not labels:
        labels = train.labels()
    parts = split(
        train,
        validation=0.0 if files.validation else 0.2,
        test=0.0 if files.test else 0.2,
        salt=task_file.name,
    )
    validation = read(files.validation) if files.validation else parts.validation
    selection, calibration = take_share(validation, task_file.routing.selection_share, task_file.name)
    return Rows(
        train=parts.train,
        selection=selection,
        calibration=calibration,
        test=read(files.test) if files.test else parts.test,
        open_ended=_read_open(task_file),
    )


def read_task(task_file: TaskFile, rows: Rows) -> Classify:
    """The task: labels from the file, or those of the training rows. Raises ConfigError if they make no task."""
    # A rare label may have all its rows in one part, so those of every part are looked at.
    parts = (rows.train, rows.selection, rows.calibration, rows.test)
    values = {
        "name": task_file.name,
        "labels": task_file.labels or sorted({label for part in parts for label in part.labels()}),
        "about": task_file.about,
        "descriptions": task_file.descriptions,
    }
    return parse_record(Classify, values, where=f"task {task_file.name}")


def _read_open(task_file: TaskFile) -> Dataset | None:
    if task_file.data.open_ended is None:
        return None
    columns = task_file.data.columns.model_copy(update={"text": "prompt", "prompt": "-"})
    read = load(task_file.path(task_file.data.open_ended), columns=columns)
    from smallfirst.data.dataset import Example, Message

    examples = tuple(
        Example(
            messages=(Message(role="user", content=e.answer),),
            answer="",
            shape="text",
            path=e.path,
            line=e.line,
        )
        for e in read.examples
    )
    return read.subset(read.name, examples)


def _unfold_labels(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """`labels` may be a list, or a mapping from label to description."""
    values = {**values, "folder": str(path.parent)}
    if isinstance(values.get("labels"), dict):
        described = values["labels"]
        # YAML reads a bare yes or no as true or false: left as it is, to be refused, not renamed "True".
        values["labels"] = [label if isinstance(label, bool) else str(label) for label in described]
        values["descriptions"] = {str(k): str(v) for k, v in described.items() if v}
    return values
