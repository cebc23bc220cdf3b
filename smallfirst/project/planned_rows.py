"""The rows of a sampling plan as a file to fill in: JSON Lines, or CSV for a spreadsheet.

The plan itself, with the small model's answers, is a record beside it, which whoever labels does not need.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallfirst.data.dataset import Dataset, Example, Message, RowFormat, fold_text
from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.load import build_dataset, load_raw
from smallfirst.errors import ConfigError, DataError, Problem
from smallfirst.files import write_atomically
from smallfirst.routing.sampling_plan import PlannedRow, SamplingPlan
from smallfirst.tasks.task import Task

NO_ANSWER = "-"
"""Filled in where no answer of the task is right: the small model's is wrong then."""
_COLUMNS: dict[str, tuple[str, str]] = {
    "labels": ("text", "labels"),
    "target": ("text", "target"),
    "question": ("question", "answer"),
    "prompt": ("prompt", "response"),
    "chat": ("prompt", "response"),
}
"""Columns of what is asked and of the answer, by row format; of any other, text and label."""


def plan_path(rows: Path) -> Path:
    """Return where the plan of a file of rows is."""
    return rows.with_name(f"{rows.stem}.plan.json")


def load_plan(rows: Path) -> SamplingPlan:
    """Return the plan of a file of rows. Raise ConfigError without one."""
    path = plan_path(rows)
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file, so it is not known how the rows of {rows} were chosen",
            hint="keep the plan beside its rows; or smallfirst label-plan task.yaml --unlabelled ROWS",
        )
    return SamplingPlan.load(path)


def planned_texts(rows: Path) -> Dataset:
    """Return what the rows of a plan ask, without answers."""
    asked = [(Message(role="user", content=row.text),) for row in load_plan(rows).rows]
    examples = (Example(messages=m, answer="", shape="text", path=str(rows), line=i) for i, m in enumerate(asked, 1))
    return Dataset(name=rows.name, examples=tuple(examples))


def write_planned(rows: Sequence[PlannedRow], path: Path, *, shape: RowFormat, columns: Columns) -> None:
    """Add the rows to the file at `path` in the task's columns, the answer empty; what it has is kept as it is.

    Raise ConfigError if it is neither JSON Lines nor CSV.
    """
    if path.suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"{path}: rows to fill in are JSON Lines or CSV", hint=f"--out {path.with_suffix('.csv')}")
    asked, answer = _asked_and_answer(shape, columns)
    lines = [dict(row.values) for row in load_raw(path)[0] if isinstance(row.values, dict)] if path.exists() else []
    for order, row in enumerate(rows[len(lines) :], start=len(lines) + 1):
        drawn = {"order": order, "stratum": row.stratum, "propensity": round(row.propensity, 6)}
        lines.append({asked: row.text, answer: "", **drawn})
    write_atomically(path, _as_csv(lines) if path.suffix == ".csv" else _as_json(lines))


def read_planned(
    path: Path, plan: SamplingPlan, task: Task, *, shape: RowFormat, columns: Columns
) -> list[Example | str | None]:
    """Return, in the plan's order, the labelled row, NO_ANSWER where no answer of the task is right, or None if empty.

    Raise DataError naming each row that the plan does not have, that is there with two answers, or whose answer is none
    of the task.
    """
    asked, answer = _asked_and_answer(shape, columns)
    labelled, none = [], []
    for row in load_raw(path)[0]:
        value = row.values.get(answer) if isinstance(row.values, dict) else row.values
        if value == NO_ANSWER and isinstance(row.values, dict):
            none.append(fold_text(str(row.values.get(asked))))
        elif not _is_empty(value):
            labelled.append(row)
    usual = columns.model_copy(update={"group": "", "fields": ()})
    read = build_dataset(labelled, path.name, columns=usual, labels=task.closed or None) if labelled else None
    places = {fold_text(row.text): i for i, row in enumerate(plan.rows)}
    found: list[Example | str | None] = [None] * len(plan.rows)
    problems = list(read.problems) if read else []
    for place in (places[text] for text in none if text in places):
        found[place] = NO_ANSWER
    for example in read.data.examples if read else ():
        at = places.get(fold_text(example.text))
        parsed = task.parse(example.answer)
        earlier = None if at is None else found[at]
        if at is None:
            problems.append(Problem(example.path, example.line, "not a row of the plan"))
        elif parsed is None:
            problems.append(Problem(example.path, example.line, f"no answer of this task: {example.answer[:80]!r}"))
        elif earlier is not None and (isinstance(earlier, str) or earlier.answer != example.answer):
            problems.append(Problem(example.path, example.line, "there with another answer as well"))
        else:
            found[at] = example
    if problems:
        raise DataError(f"{path}: {len(problems)} rows cannot be used", problems, hint="correct these lines")
    return found


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def _asked_and_answer(shape: RowFormat, columns: Columns) -> tuple[str, str]:
    asked, answer = (getattr(columns, name) for name in _COLUMNS.get(shape, ("text", "label")))
    return asked, answer


def _as_json(lines: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _as_csv(lines: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)))
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()
