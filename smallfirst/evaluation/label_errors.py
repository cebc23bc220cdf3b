"""Rows whose given answer is probably wrong: models that are sure of themselves say something else.

Confident learning (Northcutt, Jiang and Chuang 2021) calls a row of label i a probable j if a model's probability of j
reaches its mean on rows that are given as j. Only the probability of the answer said is kept, so here that mean is over
those of them where the model says j, which is stricter. Rows that a model was trained on say little: it has seen their
answer. A list is no verdict; it goes to a person and comes back as a file.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset, Example
from smallfirst.errors import DataError, Problem, did_you_mean
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.files import write_atomically
from smallfirst.records import Record

SURE = 0.9
"""Confidence that counts as sure where a model's own mean is not known."""
FEWEST_ROWS = 3
"""An answer given to at least so many rows is a label, and has a mean."""
UNSAID = 0.5
"""What an answer without a confidence weighs."""
AGREE_OPEN, AGREE_LABEL = 2, 3
"""So many candidates that say the same make a row suspect without any of them being sure."""
_COLUMNS = ("key", "text", "given", "suggested", "answer")


class Suspect(Record):
    """A row whose given answer is probably wrong."""

    key: str
    """The row's content key."""
    text: str
    """What was asked."""
    gold: str
    """The answer that the data gives."""
    said: str
    """What the models say instead."""
    confidence: float | None
    """How sure the surest of them is, in [0, 1]; None if none of them says."""
    agrees: tuple[str, ...]
    """Candidates that say it, the surest first."""
    evidence: float
    """Confidences of those that say it, less those of candidates that give a right answer; above 0."""


class _Voice(NamedTuple):
    """What one candidate says of one row."""

    candidate: str
    row: EvaluatedRow

    @property
    def weight(self) -> float:
        return UNSAID if self.row.confidence is None else self.row.confidence


def find_label_errors(evaluations: Sequence[Evaluation], *, most: int = 50) -> tuple[Suspect, ...]:
    """At most `most` suspect rows, the strongest evidence first.

    A row is suspect if a candidate surely says something else, if three say the same other label, or if two say the
    same other text where answers are no labels; and if candidates that give a right answer weigh less. Router
    evaluations are left out: they repeat the answers of others.
    """
    heard = [e for e in evaluations if e.candidate != "routed"]
    labels = _labels(heard)
    means = {(e.candidate, e.split): _means(e) for e in heard}
    voices: dict[str, list[tuple[_Voice, bool]]] = defaultdict(list)
    for evaluation in heard:
        mean = means[evaluation.candidate, evaluation.split]
        for key, row in evaluation.by_key.items():
            sure = row.confidence is not None and row.confidence >= mean.get(row.answer or "", SURE)
            voices[key].append((_Voice(evaluation.candidate, row), sure))
    found = [suspect for key in voices if (suspect := _suspect(voices[key], labels)) is not None]
    return tuple(sorted(found, key=lambda s: (-s.evidence, s.key))[:most])


def write_suspects(found: Sequence[Suspect], path: Path) -> Path:
    """The path, at which a person finds one JSON line per suspect: text, given, suggested, and `answer` to fill in.

    Answers that the file already holds stay in it, also of rows that are suspect no longer. Raises DataError if it
    exists and cannot be read.
    """
    filled = {line["key"]: line for _, line in _read(path) if line["answer"]} if path.exists() else {}
    lines = []
    for suspect in found:
        line = dict(zip(_COLUMNS, (suspect.key, suspect.text, suspect.gold, suspect.said, ""), strict=True))
        lines.append(line | {"answer": filled.pop(suspect.key, line)["answer"]})
    lines += filled.values()
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return write_atomically(path, written.encode())


def apply_relabels(dataset: Dataset, path: Path, *, labels: Sequence[str] | None = None) -> Dataset:
    """The dataset with the answers that a person filled into an exported file; lines left empty change nothing.

    With `labels`, every answer must be one of them. A file may be applied again. Raises DataError naming every line
    that is no suspect, has no such label, contradicts another line, or belongs to no row of the dataset.
    """
    rows = {example.key: example for example in dataset.examples}
    there = {(example.text, example.answer) for example in dataset.examples}
    accepted: dict[str, str] = {}
    problems = []
    for number, line in _read(path):
        key, answer = line["key"], line["answer"]
        if not answer:
            continue
        if labels is not None and answer not in labels:
            problems.append(Problem(str(path), number, f'unknown label "{answer}"{did_you_mean(answer, labels)}'))
        elif accepted.setdefault(key, answer) != answer:
            problems.append(Problem(str(path), number, f'"{answer}", but an earlier line says "{accepted[key]}"'))
        elif key not in rows and (line["text"], answer) not in there:
            problems.append(Problem(str(path), number, f"no row of {dataset.name} has the key {key}"))
    if problems:
        raise _unusable(path, problems)
    return dataset.subset(dataset.name, tuple(_relabelled(e, accepted.get(e.key)) for e in dataset.examples))


def _labels(evaluations: Sequence[Evaluation]) -> set[str]:
    """Answers that are given often enough to be labels."""
    golds = {key: row.gold for e in evaluations for key, row in e.by_key.items()}
    return {answer for answer, n in Counter(golds.values()).items() if n >= FEWEST_ROWS}


def _means(evaluation: Evaluation) -> Mapping[str, float]:
    """Mean confidence of one candidate by label, over rows given that label where it says it."""
    said: dict[str, list[float]] = defaultdict(list)
    for row in evaluation.rows:
        if row.confidence is not None and row.answer == row.gold:
            said[row.gold].append(row.confidence)
    return {label: sum(found) / len(found) for label, found in said.items() if len(found) >= FEWEST_ROWS}


def _suspect(voices: Sequence[tuple[_Voice, bool]], labels: set[str]) -> Suspect | None:
    """The Suspect of one row, by the other answer with the most behind it; None if there is too little."""
    others: dict[str, list[tuple[_Voice, bool]]] = defaultdict(list)
    for voice, sure in voices:
        if voice.row.answer is not None and not voice.row.correct:
            others[voice.row.answer].append((voice, sure))
    against = sum(voice.weight for voice, _ in voices if voice.row.correct)
    best: Suspect | None = None
    for answer, sayers in others.items():
        n = len({voice.candidate for voice, _ in sayers})
        enough = n >= AGREE_LABEL or any(sure for _, sure in sayers) if answer in labels else n >= AGREE_OPEN
        evidence = sum(voice.weight for voice, _ in sayers) - against
        if not enough or evidence <= 0 or (best is not None and evidence <= best.evidence):
            continue
        ranked = sorted((voice for voice, _ in sayers), key=lambda v: (-v.weight, v.candidate))
        known = [v.row.confidence for v in ranked if v.row.confidence is not None]
        row = ranked[0].row
        best = Suspect(
            key=row.key,
            text=row.text,
            gold=row.gold,
            said=answer,
            confidence=max(known, default=None),
            agrees=tuple(dict.fromkeys(v.candidate for v in ranked)),
            evidence=evidence,
        )
    return best


def _relabelled(example: Example, answer: str | None) -> Example:
    if answer is None or answer == example.answer:
        return example
    # Not model_copy, which would keep the key of the old answer.
    changed = {"answer": answer, "also": tuple(a for a in example.also if a != answer)}
    return Example(**{name: getattr(example, name) for name in Example.model_fields} | changed)


def _read(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and columns of an exported file. Raises DataError naming every line that is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable: {error}", hint="export the suspects first") from None
    lines, problems = [], []
    for number, written in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 is text
        if not written.strip():
            continue
        line = _parsed(written)
        if isinstance(line, str):
            problems.append(Problem(str(path), number, line))
        else:
            lines.append((number, line))
    if problems:
        raise _unusable(path, problems)
    return lines


def _parsed(written: str) -> dict[str, str] | str:
    """The columns of a line, or the rule that it breaks."""
    try:
        line: Any = json.loads(written)
    except ValueError as error:
        return f"no JSON: {error}"
    if not isinstance(line, dict):
        return "must be a JSON object"
    missing = [name for name in _COLUMNS if not isinstance(line.get(name), str)]
    if missing:
        return f"must have as text: {', '.join(missing)}"
    return {name: line[name].strip() if name == "answer" else line[name] for name in _COLUMNS}


def _unusable(path: Path, problems: Sequence[Problem]) -> DataError:
    return DataError(
        f"{path}: {len(problems)} lines cannot be used, so none was",
        problems,
        hint="mend these lines, or empty their answer; then apply the file again",
    )
