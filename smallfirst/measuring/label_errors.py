"""Rows whose given label is probably wrong: a model that was fitted without them is confident of another one.

After confident learning (Northcutt, Jiang and Chuang 2021). Only the predicted answer's probability is stored, so a
label's mean confidence is taken over rows given that label where the model predicts it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import pydantic

from smallfirst.base.errors import DataError, Problem, did_you_mean
from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record, parse_json_lines
from smallfirst.data.dataset import Dataset, Example
from smallfirst.measuring.evaluate import EvaluatedRow

CONFIDENT = 0.9
"""Confidence that counts as high of a label whose mean is not known."""
MIN_LABEL_ROWS = 3
"""From so many rows on which a label is right its mean confidence is known."""


class SuspectLine(Record):
    """One line of the file for a person; further columns are ignored."""

    model_config = pydantic.ConfigDict(extra="ignore")

    key: str
    text: str
    given: str
    suggested: str
    answer: Annotated[str, pydantic.StringConstraints(strip_whitespace=True)]


def find_label_errors(rows: Sequence[EvaluatedRow], *, most: int = 50) -> tuple[EvaluatedRow, ...]:
    """Return at most `most` rows on which the model is surer of another label than it is of that label on the whole.

    The surest first. The model must have been fitted without these rows.
    """
    means = _mean_confidences(rows)

    def is_suspect(row: EvaluatedRow) -> bool:
        if row.answer is None or row.confidence is None or row.correct:
            return False
        return row.confidence >= means.get(row.answer, CONFIDENT)

    found = filter(is_suspect, rows)
    return tuple(sorted(found, key=lambda row: (-(row.confidence or 0.0), row.key))[:most])


def write_suspects(suspects: Sequence[EvaluatedRow], path: Path) -> Path:
    """Write one JSON line per suspect for a person; keep answers already filled in. Raise DataError if unreadable."""
    filled = {line.key: line for _, line in _read(path) if line.answer} if path.exists() else {}
    lines = []
    for s in suspects:
        answer = filled.pop(s.key).answer if s.key in filled else ""
        lines.append(SuspectLine(key=s.key, text=s.text, given=s.gold, suggested=s.answer or "", answer=answer))
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


def _mean_confidences(rows: Sequence[EvaluatedRow]) -> Mapping[str, float]:
    """Return the mean confidence by label, over rows given that label where it predicts it."""
    known: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.confidence is not None and row.answer == row.gold:
            known[row.gold].append(row.confidence)
    return {label: sum(values) / len(values) for label, values in known.items() if len(values) >= MIN_LABEL_ROWS}


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
