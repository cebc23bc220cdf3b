"""Labels or fields one by one: how often found, how often right, missing, invented, and real errors of each.

Counts are the evaluation's own (the task made them); here they are ordered, worst first, and given examples.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.records import Record
from smallfirst.report.json_differences import differing, within
from smallfirst.report.measures import Reliability, answers_are_labels, reliability_of
from smallfirst.stats.intervals import Estimate
from smallfirst.tasks.task import PartCounts


class PartRow(Record):
    """One label or one field."""

    part: PartCounts
    """Its counts."""
    errors: tuple[EvaluatedRow, ...]
    """A few rows where it went wrong, the surest mistakes first."""

    @property
    def recall(self) -> Estimate | None:
        """Share found of what was there; None if it was never there."""
        return self.part.recall if self.part.n_gold else None

    @property
    def precision(self) -> Estimate | None:
        """Share right of what was said; None if it was never said."""
        return self.part.precision if self.part.n_said else None

    @property
    def n_wrong(self) -> int:
        """Said and there, but with another value (fields only)."""
        return max(0, self.part.n_gold - self.part.n_right - self.part.n_missing)


class FieldTrust(Record):
    """Whether a field's confidence means what it says."""

    path: str
    """Which field."""
    reliability: Reliability
    """Its bins and calibration error."""
    mean_confidence: float
    """Mean confidence."""
    accuracy: Estimate
    """Share right."""


def part_rows(evaluation: Evaluation, *, fields: bool, n_errors: int = 3) -> tuple[PartRow, ...]:
    """One row a label or field, worst F1 first; those that never occur come last. Empty without parts."""
    parts = evaluation.parts or _counted(evaluation)
    errors = _field_errors(evaluation.rows, parts) if fields else _label_errors(evaluation.rows)
    table = [PartRow(part=part, errors=tuple(errors.get(part.name, ())[:n_errors])) for part in parts]
    return tuple(
        sorted(
            table,
            key=lambda row: (
                row.part.n_gold + row.part.n_said == 0,
                row.part.f1,
                row.recall.value if row.recall else 1.0,
                -row.part.n_gold,
                row.part.name,
            ),
        )
    )


def field_trust(evaluation: Evaluation) -> tuple[FieldTrust, ...]:
    """Reliability of each field's confidence over the rows that give one, largest calibration error first."""
    said: dict[str, list[float]] = defaultdict(list)
    right: dict[str, list[bool]] = defaultdict(list)
    for row in evaluation.rows:
        if not row.field_confidence:
            continue
        for path, confidence in row.field_confidence.items():
            said[path].append(confidence)
            right[path].append(not differing(row, path))
    found = []
    for path, confidences in said.items():
        made = reliability_of(confidences, right[path], n_bins=5)
        found.append(
            FieldTrust(
                path=path,
                reliability=made,
                mean_confidence=sum(confidences) / len(confidences),
                accuracy=made.accuracy,
            )
        )
    return tuple(sorted(found, key=lambda f: (-f.reliability.ece, f.path)))


def _counted(evaluation: Evaluation) -> tuple[PartCounts, ...]:
    """Counts by label from the rows, for evaluations whose task gave none."""
    if not answers_are_labels(evaluation):
        return ()
    there = Counter(row.gold for row in evaluation.rows)
    said = Counter(row.answer for row in evaluation.rows if row.answer is not None)
    right = Counter(row.answer for row in evaluation.rows if row.correct and row.answer is not None)
    return tuple(PartCounts(name=name, n_gold=n, n_said=said[name], n_right=right[name]) for name, n in there.items())


def _label_errors(rows: Sequence[EvaluatedRow]) -> Mapping[str, list[EvaluatedRow]]:
    found: dict[str, list[EvaluatedRow]] = defaultdict(list)
    for row in surest_first([row for row in rows if not row.correct]):
        gold, said = _labels(row.gold), _labels(row.answer)
        # Of several labels those that were missed or wrongly added; of one just the right one.
        for label in (gold ^ said) if row.gold.startswith("[") else gold:
            found[label].append(row)
    return found


def _labels(answer: str | None) -> frozenset[str]:
    if answer is None:
        return frozenset()
    if answer.startswith("["):
        try:
            return frozenset(str(label) for label in json.loads(answer))
        except ValueError:
            pass
    return frozenset([answer])


def _field_errors(rows: Sequence[EvaluatedRow], parts: Sequence[PartCounts]) -> Mapping[str, list[EvaluatedRow]]:
    found: dict[str, list[EvaluatedRow]] = defaultdict(list)
    for row in surest_first([row for row in rows if row.answer != row.gold]):
        wrong = differing(row)
        for part in parts:
            if any(within(pair.path, part.name) for pair in wrong):
                found[part.name].append(row)
    return found


def surest_first(rows: Sequence[EvaluatedRow]) -> list[EvaluatedRow]:
    """The rows, most confident first."""
    return sorted(rows, key=lambda row: -(row.confidence or 0.0))
