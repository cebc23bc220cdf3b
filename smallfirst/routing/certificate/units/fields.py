"""The certificate of fields: JSON answers kept field by field, with a limit on the share of kept fields that are wrong.

A field is one at the top level of the answer, there or left out. Its confidence is the model's own probability of its
value, made comparable between fields by isotonic regression on selection rows. The limit is an expected loss
(Angelopoulos et al. 2024), shown as Learn then Test (Angelopoulos et al. 2021): the fields of a row, and the rows of a
group, are one observation (`clusters`), so fields that are wrong together cost nothing in validity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smallfirst.errors import ConfigError
from smallfirst.evaluation.calibration import fit_isotonic
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.models.confidence import IsotonicCurve
from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.units.clusters import Parts
from smallfirst.stats.intervals import wilson


class KeptFields(Record):
    """What is shown at one threshold about the calibration rows' fields."""

    threshold: float
    """Least confidence of a field that is kept; above 1 when none is."""
    n_kept: int
    n_wrong: int
    """Wrong among them."""
    n_rows_kept: int
    n_rows_wrong: int
    """Of these rows, how many have a wrong field."""
    bound: float
    """Upper bound on the share of kept fields that are wrong; 1 when none is kept."""

    @property
    def issued(self) -> bool:
        return self.threshold <= 1


class FieldCertificate(Record):
    """Two thresholds for the fields of one stage's answers; both hold together at the guarantee's confidence."""

    names: tuple[str, ...]
    """The fields, in order of appearance."""
    max_wrong: float
    """Largest share of kept fields that may be wrong, in (0, 1)."""
    each: KeptFields
    """Where each field is kept by its own confidence and the others are marked as not certain."""
    whole: KeptFields
    """Where only answers are kept whose every field is confident enough, and the others are asked elsewhere."""
    n_rows: int
    """Calibration rows."""
    n_units: int
    """Groups among them, rows without a group included: what counts as an observation."""
    curves: dict[str, IsotonicCurve] = {}
    """From the model's probability of a field to the calibrated one, fitted on selection rows."""

    @property
    def issued(self) -> bool:
        return self.each.issued or self.whole.issued

    @property
    def in_words(self) -> str:
        fields = self.n_rows * len(self.names)
        units = f" in {self.n_units:,} groups" if self.n_units < self.n_rows else ""
        if not self.issued:
            return (
                f"fields are not certified: {self.n_rows:,} rows{units} show at no threshold that at most "
                f"{100 * self.max_wrong:g} % of kept fields are wrong"
            )
        each, whole = self.each, self.whole
        return (
            f"field by field {each.n_kept:,} of {fields:,} fields{units} are kept, {each.n_wrong:,} of them wrong, so "
            f"at most {each.bound:.3f}; {whole.n_rows_kept:,} of {self.n_rows:,} answers are kept as a whole, "
            f"{whole.n_wrong:,} of their fields wrong, so at most {whole.bound:.3f}"
        )

    def changes(
        self, guarantee: Guarantee, issued: bool, why: str, limits_of_validity: Sequence[str]
    ) -> dict[str, Any]:
        """Return what changes in a certificate of the guarantee's other limits; without any its rows are those kept."""
        whole, by_rows = self.whole, bool(guarantee.limits)
        told = "the fields of a row, and the rows of a group, count as one observation; no audit tests fields yet"
        changes: dict[str, Any] = {
            "fields": self,
            "guarantee": guarantee,
            "confidence": guarantee.confidence,
            "issued": issued or self.issued,
            "why": f"{why}; {self.in_words}" if by_rows else f"{guarantee.in_words}: {self.in_words}",
            "limits_of_validity": (*limits_of_validity, told),
        }
        if by_rows:
            return changes
        counts = {"n_labels": self.n_rows, "n_accepted": whole.n_rows_kept, "n_errors": whole.n_rows_wrong}
        return changes | counts | {"coverage": wilson(whole.n_rows_kept, self.n_rows)}

    def certified(self, field_confidence: Mapping[str, float]) -> tuple[str, ...]:
        """Return the fields of an answer that are certified, from the model's probabilities by field path."""
        known = _calibrated(field_confidence, self.curves)
        return tuple(name for name in self.names if known.get(name, 0.0) >= self.each.threshold)

    def keeps(self, field_confidence: Mapping[str, float]) -> bool:
        """Return True if the whole answer may be kept: every field is confident enough."""
        known = _calibrated(field_confidence, self.curves)
        return self.whole.issued and min(known.get(name, 0.0) for name in self.names) >= self.whole.threshold


@dataclass(frozen=True)
class FieldTable(Parts):
    """The fields of n answers; their confidence is 0 where the model gives none."""

    names: tuple[str, ...] = ()


def field_table(rows: Sequence[EvaluatedRow], curves: Mapping[str, IsotonicCurve] | None = None) -> FieldTable:
    """Return the fields of the rows. Raise ConfigError if the rows say nothing about fields."""
    if any(row.wrong_fields is None for row in rows) or not any(row.field_confidence for row in rows):
        raise ConfigError(
            "routing.guarantee.max_wrong_fields: these answers have no fields with a confidence",
            hint="it is for tasks of kind extract whose small model writes JSON; run smallfirst evaluate task.yaml",
        )
    known = [_calibrated(row.field_confidence, curves or {}) for row in rows]
    wrong = [row.wrong_fields or () for row in rows]
    names = tuple(dict.fromkeys(name for row in (*known, *wrong) for name in row))
    group = np.array([row.group for row in rows], dtype=object) if any(row.group for row in rows) else None
    confidence = np.array([[row.get(name, 0.0) for name in names] for row in known])
    return FieldTable(confidence, np.array([[name in row for name in names] for row in wrong]), group, names)


def allow_wrong_fields(drafts: Evaluation, n_allowed: int) -> Evaluation:
    """Return the evaluation with answers of up to `n_allowed` wrong fields counted as right; as it is for 0."""
    if not n_allowed:
        return drafts
    field_table(drafts.rows)  # raises the error that says what is missing
    rows = [row.model_copy(update={"correct": len(row.wrong_fields or ()) <= n_allowed}) for row in drafts.rows]
    return drafts.model_copy(update={"rows": tuple(rows)})


def fit_curves(selection: Sequence[EvaluatedRow]) -> dict[str, IsotonicCurve]:
    """Return a curve for each field, fitted on selection rows; none where these are too few or all right."""
    table = field_table(selection)
    fitted = (fit_isotonic(*pair) for pair in zip(table.confidence.T.tolist(), (~table.wrong).T.tolist(), strict=True))
    return {name: curve for name, curve in zip(table.names, fitted, strict=True) if curve.x}


def certify_fields(
    drafts: Evaluation, max_wrong: float, *, level: float, selection: Evaluation | None = None
) -> FieldCertificate:
    """Certify the fields of one stage's answers to calibration rows; `selection` rows calibrate the confidences."""
    curves = fit_curves(selection.rows) if selection is not None and selection.rows else {}
    table = field_table(drafts.rows, curves)
    each, whole = search_fields(table, max_wrong, level=level)
    n_units = len(set(table.unit.tolist()))
    return FieldCertificate(
        names=table.names, max_wrong=max_wrong, each=each, whole=whole, n_rows=table.n, n_units=n_units, curves=curves
    )


def search_fields(table: FieldTable, max_wrong: float, *, level: float) -> tuple[KeptFields, KeptFields]:
    """Return the loosest thresholds at which at most `max_wrong` of kept fields are wrong, at half the level each.

    The first keeps each field by its own confidence, the second whole answers by that of their least confident field.
    """
    lowest = np.broadcast_to(table.confidence.min(axis=1, keepdims=True), table.confidence.shape)
    return _search(table, max_wrong, level / 2), _search(replace(table, confidence=lowest), max_wrong, level / 2)


def _search(table: FieldTable, limit: float, level: float) -> KeptFields:
    found = table.search(limit, level=level)
    kept = table.confidence >= found.threshold
    whole = kept.all(axis=1)
    return KeptFields(
        threshold=found.threshold,
        n_kept=int(kept.sum()),
        n_wrong=int((kept & table.wrong).sum()),
        n_rows_kept=int(whole.sum()),
        n_rows_wrong=int((whole & table.wrong.any(axis=1)).sum()),
        bound=found.bound,
    )


def _calibrated(field_confidence: Mapping[str, float], curves: Mapping[str, IsotonicCurve]) -> dict[str, float]:
    """Return by top-level field the probability that all its values are right."""
    own: dict[str, float] = {}
    for path, probability in field_confidence.items():
        name = _top_level(path)
        own[name] = own.get(name, 1.0) * probability
    return {name: curves[name].at(value) if name in curves else value for name, value in own.items()}


def _top_level(path: str) -> str:
    """Return the name of the field at the top level to which a path leads (`items[].price` to `items`)."""
    if path.startswith('"'):
        return str(json.JSONDecoder().raw_decode(path)[0])
    return path.split(".")[0].split("[")[0]
