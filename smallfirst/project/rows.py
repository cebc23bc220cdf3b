"""The rows a task.yaml names, split by what they may be used for, and the task they make.

Splits are by content hash, so a row stays where it is when others come or go. What is not told in the file (labels, a
schema) is taken from the rows; the price is that they are read before the task is known.
"""

from __future__ import annotations

from pathlib import Path

from smallfirst.data.dataset import Dataset, Example, Message, sample_share, split
from smallfirst.data.row_formats import ROW_FORMATS
from smallfirst.data.sources.load import load
from smallfirst.errors import DataError, Problem
from smallfirst.evaluation.label_errors import apply_relabels
from smallfirst.project.task_file import TaskFile
from smallfirst.records import Record, parse_record
from smallfirst.tasks import TASK_KINDS
from smallfirst.tasks.task import Task

PARTS = ("train", "selection", "calibration", "test")
"""Parts of the rows that have answers."""


SPLIT_OFF = 0.2
"""Share of the training rows that stands in for a missing file of validation or test rows."""


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


def read_rows(task_file: TaskFile) -> Rows:
    """All rows, split. Raises DataError with every bad row of the first file that has one."""
    files = task_file.data
    kind = TASK_KINDS.get(task_file.kind)
    labels = kind.row_labels(task_file.settings)

    def read(path: Path) -> Dataset:
        return load(path, columns=files.columns, labels=labels, folder=task_file.folder)

    train = read(files.train)
    labels = kind.row_labels(task_file.settings, train)
    parts = split(
        train,
        **split_shares(task_file),
        salt=task_file.name,
    )
    validation = read(files.validation) if files.validation else parts.validation
    selection, calibration = sample_share(validation, task_file.routing.selection_share, task_file.name)
    return Rows(
        train=parts.train,
        selection=selection,
        calibration=calibration,
        test=read(files.test) if files.test else parts.test,
        open_ended=_read_open(task_file),
    )


def split_shares(task_file: TaskFile) -> dict[str, float]:
    """Shares of the training file, in [0, 1], that become validation and test rows for want of files of their own."""
    files = task_file.data
    return {"validation": 0.0 if files.validation else SPLIT_OFF, "test": 0.0 if files.test else SPLIT_OFF}


def read_task(task_file: TaskFile, rows: Rows) -> Task:
    """Return the task of the file. Raise ConfigError if its settings and rows make none."""
    kind = TASK_KINDS.get(task_file.kind)
    settings = kind.complete_settings(task_file.settings, rows.train, (rows.selection, rows.calibration, rows.test))
    values = {"kind": task_file.kind, "name": task_file.name, "about": task_file.about, **settings}
    return parse_record(kind, values, where=f"task {task_file.name}")


def with_canonical_answers(rows: Rows, task: Task) -> Rows:
    """The rows with their answers in the task's canonical form. Raises DataError naming each row that has none."""
    wanted = task.row_formats
    problems: list[Problem] = []

    def settle(data: Dataset) -> Dataset:
        found = []
        for example in data.examples:
            golds = [task.parse(gold) for gold in example.golds]
            if example.shape not in wanted:
                takes = " or ".join(ROW_FORMATS[s] for s in wanted)
                rule = f"a row of {ROW_FORMATS[example.shape]}; this task takes {takes}"
                problems.append(Problem(example.path, example.line, rule))
            elif sum(m.role != "system" for m in example.messages) > 1:
                rule = "a conversation of several turns; a task is one question and its answer"
                problems.append(Problem(example.path, example.line, rule))
            elif None in golds:
                bad = example.golds[golds.index(None)]
                problems.append(Problem(example.path, example.line, f"no answer of this task: {bad[:80]!r}"))
            else:
                answer, *also = (gold for gold in golds if gold is not None)
                found.append(_answered(example, answer, tuple(also)))
        return data.subset(data.name, tuple(found))

    parts = {name: settle(getattr(rows, name)) for name in PARTS}
    if problems:
        raise DataError(
            f"{len(problems)} rows do not fit the task", problems, hint="mend these lines, or the task's settings"
        )
    return rows.model_copy(update=parts)


def _answered(example: Example, answer: str, also: tuple[str, ...]) -> Example:
    """The row with these answers; a changed one is made anew, since a copy would keep the key of the old answer."""
    if (answer, also) == (example.answer, example.also):
        return example
    kept = {name: getattr(example, name) for name in Example.model_fields}
    return Example(**kept | {"answer": answer, "also": also})


def with_relabels(rows: Rows, task_file: TaskFile, task: Task) -> Rows:
    """The rows with the answers that people gave to probable label errors. Raises DataError naming every bad line."""
    if task_file.data.relabels is None:
        return rows
    path = task_file.path(task_file.data.relabels)
    whole = rows.train.subset("rows", tuple(e for name in PARTS for e in getattr(rows, name).examples))
    mended = iter(apply_relabels(whole, path, labels=task.closed or None).examples)
    # The same number of rows in the same order: each part takes its own back.
    parts = {}
    for name in PARTS:
        data = getattr(rows, name)
        parts[name] = data.subset(data.name, tuple(next(mended) for _ in data.examples))
    return rows.model_copy(update=parts)


def _read_open(task_file: TaskFile) -> Dataset | None:
    if task_file.data.open_ended is None:
        return None
    columns = task_file.data.columns.model_copy(update={"text": "prompt", "prompt": "-"})
    read = load(task_file.data.open_ended, columns=columns, folder=task_file.folder)
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
