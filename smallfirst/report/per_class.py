"""Labels or fields one by one: recall, precision, missing and invented values, and real errors of each, worst first."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.records import Record
from smallfirst.report.json_differences import differing_fields, is_within
from smallfirst.report.measures import surest_errors
from smallfirst.stats.intervals import Estimate
from smallfirst.tasks.task import PartCounts

N_ERRORS = 3
"""Errors shown for each label or field."""


class PartRow(Record):
    """One label or one field."""

    part: PartCounts
    errors: tuple[EvaluatedRow, ...]
    """A few rows where it went wrong, the most confident mistakes first."""

    @property
    def recall(self) -> Estimate | None:
        """Share found of what was there; None if it never occurs."""
        return self.part.recall if self.part.n_gold else None

    @property
    def precision(self) -> Estimate | None:
        """Share right of what was predicted; None if it was never predicted."""
        return self.part.precision if self.part.n_said else None

    @property
    def n_wrong(self) -> int:
        """Predicted where expected, but with another value (fields only)."""
        return max(0, self.part.n_gold - self.part.n_right - self.part.n_missing)


def part_rows(evaluation: Evaluation, *, fields: bool) -> tuple[PartRow, ...]:
    """Return one row for each label or field, worst F1 first; those that never occur come last."""
    errors = _field_errors(evaluation) if fields else _label_errors(evaluation)
    rows = [PartRow(part=part, errors=tuple(errors.get(part.name, ())[:N_ERRORS])) for part in evaluation.parts]
    return tuple(sorted(rows, key=_worst_first))


def _worst_first(row: PartRow) -> tuple[bool, float, float, int, str]:
    part = row.part
    recall = row.recall.value if row.recall else 1.0
    return (part.n_gold + part.n_said == 0, part.f1, recall, -part.n_gold, part.name)


def _label_errors(evaluation: Evaluation) -> Mapping[str, list[EvaluatedRow]]:
    found: dict[str, list[EvaluatedRow]] = defaultdict(list)
    for row in surest_errors(evaluation):
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


def _field_errors(evaluation: Evaluation) -> Mapping[str, list[EvaluatedRow]]:
    found: dict[str, list[EvaluatedRow]] = defaultdict(list)
    for row in surest_errors(evaluation):
        paths = [pair.path for pair in differing_fields(row)]
        for part in evaluation.parts:
            if any(is_within(path, part.name) for path in paths):
                found[part.name].append(row)
    return found
