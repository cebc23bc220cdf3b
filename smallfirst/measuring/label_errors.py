"""Rows whose given answer is probably wrong: confident models agree on another one.

After confident learning (Northcutt, Jiang and Chuang 2021). Only the predicted answer's probability is stored, so a
label's mean confidence is taken over rows given that label where the model predicts it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import pydantic

from smallfirst.base.errors import DataError, Problem, did_you_mean
from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record, parse_json_lines
from smallfirst.data.dataset import Dataset, Example
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation

CONFIDENT = 0.9
"""Confidence that counts as high where a model's own mean is not known."""
MIN_LABEL_ROWS = 3
"""An answer given to at least this many rows is a label, and has a mean."""
DEFAULT_WEIGHT = 0.5
"""Weight of an answer without a confidence."""
MIN_AGREEING_TEXT, MIN_AGREEING_LABEL = 2, 3
"""This many candidates with the same other answer make a row suspect without any of them being confident."""


class Suspect(Record):
    """A row whose given answer is probably wrong."""

    key: str
    text: str
    gold: str
    said: str
    confidence: float | None
    """Highest confidence among them, in [0, 1]; None if none gives one."""
    agrees: tuple[str, ...]
    """Candidates with that answer, most confident first."""
    evidence: float
    """Sum of their confidences less those of candidates that give a right answer; above 0."""


class SuspectLine(Record):
    """One line of the file for a person; further columns are ignored."""

    model_config = pydantic.ConfigDict(extra="ignore")

    key: str
    text: str
    given: str
    suggested: str
    answer: Annotated[str, pydantic.StringConstraints(strip_whitespace=True)]


class _Prediction(NamedTuple):
    candidate: str
    row: EvaluatedRow
    confident: bool

    @property
    def weight(self) -> float:
        return DEFAULT_WEIGHT if self.row.confidence is None else self.row.confidence


def find_label_errors(evaluations: Sequence[Evaluation], *, most: int = 50) -> tuple[Suspect, ...]:
    """Return at most `most` suspect rows, strongest evidence first.

    A row is suspect if a candidate confidently gives another answer, if three give the same other label, or if two give
    the same other text where answers are not labels; and if the evidence outweighs the candidates that give a right
    answer. Router evaluations are left out, since they repeat the answers of others.
    """
    used = [e for e in evaluations if e.candidate != "routed"]
    labels = _labels(used)
    predictions: dict[str, list[_Prediction]] = defaultdict(list)
    for evaluation in used:
        means = _mean_confidences(evaluation)
        for key, row in evaluation.by_key.items():
            confident = row.confidence is not None and row.confidence >= means.get(row.answer or "", CONFIDENT)
            predictions[key].append(_Prediction(evaluation.candidate, row, confident))
    found = [suspect for group in predictions.values() if (suspect := _suspect(group, labels)) is not None]
    return tuple(sorted(found, key=lambda s: (-s.evidence, s.key))[:most])


def write_suspects(suspects: Sequence[Suspect], path: Path) -> Path:
    """Write one JSON line per suspect for a person; keep answers already filled in. Raise DataError if unreadable."""
    filled = {line.key: line for _, line in _read(path) if line.answer} if path.exists() else {}
    lines = []
    for s in suspects:
        answer = filled.pop(s.key).answer if s.key in filled else ""
        lines.append(SuspectLine(key=s.key, text=s.text, given=s.gold, suggested=s.said, answer=answer))
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


def _labels(evaluations: Sequence[Evaluation]) -> set[str]:
    golds = {key: row.gold for e in evaluations for key, row in e.by_key.items()}
    return {answer for answer, n in Counter(golds.values()).items() if n >= MIN_LABEL_ROWS}


def _mean_confidences(evaluation: Evaluation) -> Mapping[str, float]:
    """Return a candidate's mean confidence by label, over rows given that label where it predicts it."""
    known: dict[str, list[float]] = defaultdict(list)
    for row in evaluation.rows:
        if row.confidence is not None and row.answer == row.gold:
            known[row.gold].append(row.confidence)
    return {label: sum(values) / len(values) for label, values in known.items() if len(values) >= MIN_LABEL_ROWS}


def _suspect(predictions: Sequence[_Prediction], labels: set[str]) -> Suspect | None:
    """Return the suspect of the other answer with most evidence; None if none has enough."""
    others: dict[str, list[_Prediction]] = defaultdict(list)
    for prediction in sorted(predictions, key=lambda p: (-p.weight, p.candidate)):
        if prediction.row.answer is not None and not prediction.row.correct:
            others[prediction.row.answer].append(prediction)
    against = sum(p.weight for p in predictions if p.row.correct)
    found = list[Suspect]()
    for answer, ranked in others.items():
        agrees, evidence = tuple(dict.fromkeys(p.candidate for p in ranked)), sum(p.weight for p in ranked) - against
        enough = len(agrees) >= MIN_AGREEING_TEXT
        if answer in labels:
            enough = len(agrees) >= MIN_AGREEING_LABEL or any(p.confident for p in ranked)
        if enough and evidence > 0:
            row, known = ranked[0].row, [p.row.confidence for p in ranked if p.row.confidence is not None]
            told = {"key": row.key, "text": row.text, "gold": row.gold, "said": answer, "agrees": agrees}
            found.append(Suspect(**told, confidence=max(known, default=None), evidence=evidence))
    return max(found, key=lambda suspect: suspect.evidence, default=None)


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
