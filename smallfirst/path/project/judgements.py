"""People's answers to a random part of the calibration rows, in a file (`data.relabels`): these rows alone certify.

Judged where a model disagrees, rows would pass its answers as right and keep the labels that are wrong in its favour.
"""

from __future__ import annotations

import json
from pathlib import Path

import pydantic

from smallfirst.base.errors import DataError, Problem, did_you_mean
from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record, parse_json_lines
from smallfirst.data.dataset import Dataset, Example, sample_rows
from smallfirst.path.project.rows import Rows
from smallfirst.path.project.task_file import TaskFile
from smallfirst.tasks.task import Task

_HINT = "smallfirst review task.yaml --labels FILE --random 200   writes rows to judge; fill in every `answer`"


class JudgedRow(Record):
    """A line of the file; further fields are ignored."""

    model_config = pydantic.ConfigDict(extra="ignore")

    key: str
    """Of the row as it was drawn."""
    text: str = ""
    given: str = ""
    answer: str = ""
    """The right answer; empty until a person has filled it in."""


def write_random_rows(rows: Rows, n: int, path: Path) -> int:
    """Write `n` calibration rows, drawn by content alone, for a person to judge; what is filled in stays.

    Return their number. Raise DataError if the file there is none.
    """
    filled = {line.key: line for _, line in _read(path) if line.answer} if path.exists() else {}
    drawn = [JudgedRow(key=e.key, text=e.text, given=e.answer) for e in sample_rows(rows.calibration, n).examples]
    lines = [filled.get(row.key, row).model_dump() for row in drawn]
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return len(lines)


def with_judgements(rows: Rows, file: TaskFile, task: Task) -> Rows:
    """Return the rows with the judged calibration rows in the place of all; unchanged before one is judged.

    Raise DataError naming lines that cannot be used, and if the judged rows are no random part.
    """
    if file.data.relabels is None:
        return rows
    path, problems, answers = file.path(file.data.relabels), list[Problem](), dict[str, str]()
    for number, line in _read(path):
        answer = task.parse(line.answer) if line.answer.strip() else ""
        if answer is None:
            said = f'the task has no answer "{line.answer}"{did_you_mean(line.answer, task.closed)}'
            problems.append(Problem(str(path), number, said))
        elif answer:
            answers[line.key] = answer
    drawn = sample_rows(rows.calibration, len(answers))
    if problems or {example.key for example in drawn.examples} != answers.keys():
        raise DataError(f"{path}: its {len(answers)} answers are no random part of the rows", problems, hint=_HINT)
    if not answers:
        return rows
    judged = tuple(_judged(example, answers[example.key]) for example in drawn.examples)
    return rows.model_copy(update={"calibration": Dataset(name=rows.calibration.name, examples=judged)})


def _judged(example: Example, answer: str) -> Example:
    # Not model_copy, which would keep the key of the old answer.
    changed = {"answer": answer, "also": tuple(one for one in example.also if one != answer), "source": ""}
    return Example(**{name: getattr(example, name) for name in Example.model_fields} | changed)


def _read(path: Path) -> list[tuple[int, JudgedRow]]:
    try:
        lines, problems = parse_json_lines(JudgedRow, path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable: {error}", hint=_HINT) from None
    if problems:
        raise DataError(f"{path}: {len(problems)} lines cannot be used", problems, hint=_HINT)
    return lines
