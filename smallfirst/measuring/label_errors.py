"""The file of rows that a person judges: labels that are probably wrong (`data_issues` finds them), and random ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pydantic

from smallfirst.base.errors import DataError, Problem, did_you_mean
from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record, parse_json_lines
from smallfirst.data.dataset import Dataset, Example


class SuspectLine(Record):
    """One line of the file for a person; further columns are ignored."""

    model_config = pydantic.ConfigDict(extra="ignore")

    key: str
    text: str
    given: str
    suggested: str
    answer: Annotated[str, pydantic.StringConstraints(strip_whitespace=True)]


def suspect_line(example: Example, suggested: str = "") -> SuspectLine:
    """Return a row for a person to judge."""
    return SuspectLine(key=example.key, text=example.text, given=example.answer, suggested=suggested, answer="")


def write_suspects(suspects: Sequence[SuspectLine], path: Path) -> Path:
    """Write one JSON line per suspect for a person; keep answers already filled in. Raise DataError if unreadable."""
    filled = {line.key: line for _, line in _read(path) if line.answer} if path.exists() else {}
    lines = [s.model_copy(update={"answer": filled.pop(s.key).answer}) if s.key in filled else s for s in suspects]
    lines += filled.values()
    content = "".join(json.dumps(line.model_dump(), ensure_ascii=False) + "\n" for line in lines)
    return write_atomically(path, content.encode())


def apply_relabels(dataset: Dataset, path: Path, *, labels: Sequence[str] | None = None) -> Dataset:
    """Return the dataset with the answers that a person filled in; lines left empty change nothing.

    With `labels`, every answer must be one of them. A file may be applied again. Raises DataError naming every line
    that has no such label, contradicts another line, or belongs to no row of the dataset.
    """
    keys = {example.key for example in dataset.examples}
    answered = {(example.text, example.answer) for example in dataset.examples}
    accepted: dict[str, str] = {}
    problems = []
    for number, line in _read(path):
        key, answer = line.key, line.answer
        if not answer:
            continue
        if labels is not None and answer not in labels:
            problems.append(Problem(str(path), number, f'unknown label "{answer}"{did_you_mean(answer, labels)}'))
        elif accepted.setdefault(key, answer) != answer:
            problems.append(Problem(str(path), number, f'"{answer}", but an earlier line says "{accepted[key]}"'))
        elif key not in keys and (line.text, answer) not in answered:
            problems.append(Problem(str(path), number, f"no row of {dataset.name} has the key {key}"))
    if problems:
        raise _unusable(path, problems)
    return dataset.subset(dataset.name, tuple(_relabelled(e, accepted.get(e.key)) for e in dataset.examples))


def read_relabels(path: Path) -> tuple[tuple[str, str], ...]:
    """Return key and answer of every line that a person filled in."""
    return tuple((line.key, line.answer) for _, line in _read(path) if line.answer)


def _relabelled(example: Example, answer: str | None) -> Example:
    if answer is None or (answer == example.answer and not example.source):
        return example
    # Not model_copy, which would keep the key of the old answer.
    changed = {"answer": answer, "also": tuple(a for a in example.also if a != answer), "source": ""}
    return Example(**{name: getattr(example, name) for name in Example.model_fields} | changed)


def _read(path: Path) -> list[tuple[int, SuspectLine]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not readable: {error}", hint="smallfirst review task.yaml --labels suspects.jsonl"
        ) from None
    lines, problems = parse_json_lines(SuspectLine, text, str(path))
    if problems:
        raise _unusable(path, problems)
    return lines


def _unusable(path: Path, problems: Sequence[Problem]) -> DataError:
    return DataError(
        f"{path}: {len(problems)} lines cannot be used, so none was",
        problems,
        hint="correct these lines, or empty their answer; then apply the file again",
    )
