"""Certificates where rows are not all alike and independent: groups of near-copies, fields of an answer, labels.

Paraphrases of a case, invoices of one layout and the fields of an answer are right and wrong together: they are one
observation, a unit; a row without a group is one by itself. The claim is about a request of a group drawn like these
groups, each counting alike. Of whole answers one row a unit counts, drawn whatever is right.

A field is one at the top level of a JSON answer, there or left out. Its confidence is the model's own probability of
its value, made comparable between fields by isotonic regression on selection rows. The limit is an expected loss
(Angelopoulos et al. 2024), and two tests of it are valid whatever depends on what inside a unit. With few units one
field of each is drawn, and the exact binomial tests what is kept among these. With many, the mean over units of
wrong - limit * kept is bet to be below 0 (Waudby-Smith and Ramdas 2024): whole units count, but small samples pay for
not knowing the variance.

An average can hide a part that is mostly wrong: the answers with one predicted label, or of one value of a tag. With
`per_group` each has its own sequence of thresholds; Holm's method divides the level among those with enough rows to
show anything (Bretz et al. 2009), so with the guarantee's confidence *every* certified group keeps the limit.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import betting_p_value, edge, upper_bound
from smallfirst.base.stats.sample_size import min_rows_without_error, rows_for_upper_bound
from smallfirst.measuring.calibration import fit_isotonic
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.models.confidence import IsotonicCurve
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import (
    NEVER_ACCEPT,
    CascadeData,
    CascadeOutcome,
    RiskResult,
    measure_risk,
    unit_names,
)
from smallfirst.routing.certificate.threshold_search import (
    DEFAULT_STARTS,
    CascadeThresholds,
    rejected_on_path,
    search_cascade,
    search_rows,
    start_rows,
)

STEPS = 100
"""Thresholds of fields that are tried."""
MIN_EXPECTED = 20
"""Wrong units that the limit allows for (units times limit) from which means of units are bet on."""
_SEED = 0


def unit_numbers(names: np.ndarray | None, n: int) -> np.ndarray:
    """Return the number of each row's unit (n,), counted from 0: its group, or the row where that is empty."""
    units = range(n) if names is None else [name or i for i, name in enumerate(names.tolist())]
    places: dict[object, int] = {}
    return np.array([places.setdefault(unit, len(places)) for unit in units], dtype=int)


def one_row_a_unit(names: np.ndarray | None, n: int) -> np.ndarray:
    """Return the indices, ascending, of one row of each unit, drawn alike whatever the answers."""
    order = np.random.default_rng(_SEED).permutation(n)
    _, first = np.unique(unit_numbers(names, n)[order], return_index=True)
    return np.sort(order[first])


class KeptFields(Record):
    """What is shown at one threshold about the calibration rows' fields."""

    threshold: float
    """Least confidence of a field that is kept; above 1 when none is."""
    n_kept: int
    n_wrong: int
    n_rows_kept: int
    """Rows of which every field is kept."""
    n_rows_wrong: int
    bound: float
    """Upper bound on the share of kept fields that are wrong; 1 when none is kept."""


class FieldCertificate(Record):
    """Two thresholds for the fields of one stage's answers; both hold together at the guarantee's confidence."""

    names: tuple[str, ...]
    each: KeptFields
    """Each field is kept by its own confidence, the others are marked as not certain."""
    whole: KeptFields
    """Answers are kept whose every field is confident enough, the others are asked elsewhere."""
    n_rows: int
    n_units: int
    curves: dict[str, IsotonicCurve] = {}
    """From the model's probability of a field to the calibrated one, fitted on selection rows."""

    @property
    def issued(self) -> bool:
        return min(self.each.threshold, self.whole.threshold) <= 1

    def certified(self, field_confidence: Mapping[str, float]) -> tuple[str, ...]:
        """Return the fields of an answer that are certified, from the model's probabilities by field path."""
        known = _calibrated(field_confidence, self.curves)
        return tuple(name for name in self.names if known.get(name, 0.0) >= self.each.threshold)

    def keeps(self, field_confidence: Mapping[str, float]) -> bool:
        """Return True if the whole answer may be kept: every field is confident enough."""
        known = _calibrated(field_confidence, self.curves)
        return min(known.get(name, 0.0) for name in self.names) >= self.whole.threshold


@dataclass(frozen=True)
class FieldTable:
    """The fields of n answers."""

    confidence: np.ndarray
    """By row and field, in [0, 1]; 0 where the model gives none."""
    wrong: np.ndarray
    group: np.ndarray | None = None
    """By row, as `unit_names` returns it."""
    names: tuple[str, ...] = ()

    @property
    def unit(self) -> np.ndarray:
        return unit_numbers(self.group, len(self.wrong))

    def means(self, fields: np.ndarray) -> np.ndarray:
        """Return by unit the mean of `fields` (rows, fields), in [0, 1]."""
        means: np.ndarray = np.bincount(self.unit, weights=fields.mean(axis=1)) / np.bincount(self.unit)
        return means

    def search(self, limit: float, *, level: float) -> KeptFields:
        """Return the loosest threshold at which at most `limit` of the kept fields are shown to be wrong.

        All thresholds tried hold together at `level`; they are quantiles of the confidences, whatever is right.
        """
        threshold, bound = NEVER_ACCEPT, 1.0
        if len(self.wrong):
            few = len(set(self.unit.tolist())) * limit < MIN_EXPECTED
            threshold, bound = (self._search_drawn if few else self._search_means)(limit, level)
        kept = self.confidence >= threshold
        whole = kept.all(axis=1)
        return KeptFields(
            threshold=threshold,
            n_kept=int(kept.sum()),
            n_wrong=int((kept & self.wrong).sum()),
            n_rows_kept=int(whole.sum()),
            n_rows_wrong=int((whole & self.wrong.any(axis=1)).sum()),
            bound=bound,
        )

    def _search_drawn(self, limit: float, level: float) -> tuple[float, float]:
        rows = one_row_a_unit(self.group, len(self.wrong))
        field = np.random.default_rng(_SEED).integers(0, self.wrong.shape[1], len(rows))
        starts = start_rows(len(rows), limit, level)
        found = search_rows(self.confidence[rows, field], ~self.wrong[rows, field], limit, level, starts)
        return found.threshold, upper_bound(found.n_errors, found.n_accepted, confidence=1 - level)

    def _search_means(self, limit: float, level: float) -> tuple[float, float]:
        descending = np.sort(self.confidence, axis=None)[::-1]
        tried = np.unique(np.ceil(np.arange(1, STEPS + 1) / STEPS * descending.size).astype(int)) - 1
        thresholds = np.unique(descending[tried])[::-1]

        def p_value(at: int, limit: float, wrong: np.ndarray) -> float:
            kept = self.confidence >= thresholds[at]
            excess = self.means(kept & wrong) - limit * self.means(kept)
            return betting_p_value(excess, 0.0, low=-limit, high=1 - limit)

        nothing, places = np.zeros_like(self.wrong), range(len(thresholds))
        first = bisect_left(places, True, key=lambda at: p_value(at, limit, nothing) <= level)
        p_values = np.array([p_value(at, limit, self.wrong) for at in places])
        starts = [(max(first, int(share * len(places))), weight) for share, weight in DEFAULT_STARTS]
        found = rejected_on_path(lambda a, b, share: p_values[a:b] <= share, starts, len(places), level)
        if not found.any():
            return NEVER_ACCEPT, 1.0
        best = int(np.flatnonzero(found)[-1])
        # The p-value falls as the limit grows.
        bound = edge(0.0, limit, lambda smaller: p_value(best, smaller, self.wrong) > level, within=1e-4)
        return float(thresholds[best]), bound


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
    confidence = np.array([[row.get(name, 0.0) for name in names] for row in known])
    return FieldTable(confidence, np.array([[name in row for name in names] for row in wrong]), unit_names(rows), names)


def fit_curves(selection: Sequence[EvaluatedRow]) -> dict[str, IsotonicCurve]:
    """Return a curve for each field, fitted on selection rows; none where these are too few or all right."""
    table = field_table(selection)
    fitted = (fit_isotonic(*pair) for pair in zip(table.confidence.T.tolist(), (~table.wrong).T.tolist(), strict=True))
    return {name: curve for name, curve in zip(table.names, fitted, strict=True) if curve.x}


def certify_fields(
    drafts: Evaluation, max_wrong: float, *, level: float, selection: Evaluation | None = None
) -> FieldCertificate:
    """Certify the fields of one stage's answers to calibration rows; `selection` rows calibrate the confidences.

    Each field by its own confidence, and whole answers by that of their least confident field, have half of the level.
    """
    curves = fit_curves(selection.rows) if selection is not None and selection.rows else {}
    table = field_table(drafts.rows, curves)
    lowest = np.broadcast_to(table.confidence.min(axis=1, keepdims=True), table.confidence.shape)
    each, whole = (one.search(max_wrong, level=level / 2) for one in (table, replace(table, confidence=lowest)))
    n_units = len(set(table.unit.tolist()))
    return FieldCertificate(
        names=table.names, each=each, whole=whole, n_rows=len(drafts.rows), n_units=n_units, curves=curves
    )


def _calibrated(field_confidence: Mapping[str, float], curves: Mapping[str, IsotonicCurve]) -> dict[str, float]:
    """Return by top-level field (`items` for `items[].price`) the probability that all its values are right."""
    own: dict[str, float] = {}
    for path, probability in field_confidence.items():
        quoted = path.startswith('"')
        name = str(json.JSONDecoder().raw_decode(path)[0]) if quoted else path.split(".")[0].split("[")[0]
        own[name] = own.get(name, 1.0) * probability
    return {name: curves[name].at(value) if name in curves else value for name, value in own.items()}


class GroupCertificate(Record):
    """What is shown about the accepted answers of one group."""

    label: str
    """The predicted label, or the value of the guarantee's tag."""
    threshold: float
    """Least confidence at which it is certified; above 1 when it is not."""
    n_accepted: int
    """Its calibration rows that are certified; all of them if it is not."""
    n_errors: int
    error_bound: float
    """Exact one-sided upper bound on their error, at this group's share of the level."""
    labels_missing: int | None
    """About how many more accepted rows of the group would show it at the measured error; None if none would."""

    @property
    def certified(self) -> bool:
        return self.threshold <= 1


def certify_groups(data: CascadeData, limit: float, *, level: float) -> tuple[GroupCertificate, ...]:
    """Return the certificates of the parts of one stage's answers, in alphabetical order; all hold at `level`."""
    if data.part is None:
        return ()
    confidence, right, certificates = data.confidence[-1], data.right[-1], []
    found = _search_groups(data.part, confidence, right, limit, level)
    left = min((share for _, share in found.values()), default=level)
    for label in sorted({part for part in data.part.tolist() if part is not None}):
        threshold, share = found.get(label, (NEVER_ACCEPT, left))
        accepted = (data.part == label) & ((confidence >= threshold) | (threshold > 1))
        n, errors = int(accepted.sum()), int((accepted & ~right).sum())
        missing: int | None = 0
        if threshold > 1:
            enough = rows_for_upper_bound(errors / max(1, n), limit, confidence=1 - share, max_rows=20_000)
            missing = None if enough is None else max(1, enough - n)
        certificates.append(
            GroupCertificate(
                label=label,
                threshold=threshold,
                n_accepted=n,
                n_errors=errors,
                error_bound=upper_bound(errors, n, confidence=1 - share),
                labels_missing=missing,
            )
        )
    return tuple(certificates)


class Shown(NamedTuple):
    """Where a search shows the limits on answers, and what is shown there."""

    found: CascadeThresholds
    groups: tuple[GroupCertificate, ...]
    outcome: CascadeOutcome
    accepted: np.ndarray
    """By row: covered."""
    n_accepted: int
    n_errors: int
    risks: tuple[RiskResult, ...]
    error_bound: float


def search_limits(data: CascadeData, tested: Guarantee, level: float, selection: CascadeData | None) -> Shown:
    """Search where each limit on answers is shown at `level`; without any, or at 0, nothing is."""
    limits, groups = tested.limits, tuple[GroupCertificate, ...]()
    found = CascadeThresholds((NEVER_ACCEPT,) * data.n_stages, level)
    if level and tested.per_group:
        groups = certify_groups(data, limits["error"], level=level)
        found = found._replace(thresholds=(min((one.threshold for one in groups), default=NEVER_ACCEPT),))
    elif level and limits:
        found = search_cascade(data, tested, selection=selection)
    outcome = data.outcome(found.thresholds)
    accepted = outcome.accepted
    if data.part is not None:
        own = {one.label: one.threshold for one in groups}
        accepted = data.confidence[-1] >= np.array([own.get(part, NEVER_ACCEPT) for part in data.part.tolist()])
    shown = limits.items() if found.issued and not tested.per_group else ()
    risks = tuple(measure_risk(risk, outcome, limit, found.level) for risk, limit in shown)
    n, errors = int(accepted.sum()), int((accepted & ~outcome.right).sum())
    bound = upper_bound(errors, n, confidence=tested.confidence)
    bound = next((one.bound for one in risks if one.risk == "error"), bound)
    return Shown(found, groups, outcome, accepted, n, errors, risks, bound)


def _search_groups(
    part: np.ndarray, confidence: np.ndarray, right: np.ndarray, limit: float, level: float
) -> dict[str, tuple[float, float]]:
    """Return by testable group its threshold and its share of the level; one shown throughout hands its share on."""
    first = _testable(part, limit, level)
    left, found = list(first), dict[str, tuple[float, float]]()
    while left:
        share, n_before = level / len(left), len(left)
        for group in list(left):
            rows = part == group
            one = search_rows(confidence[rows], right[rows], limit, share, [(first[group], 1.0)])
            found[group] = (one.threshold, share)
            if one.n_accepted == rows.sum():
                left.remove(group)
        if len(left) == n_before:
            break
    return found


def _testable(part: np.ndarray, limit: float, level: float) -> dict[str, int]:
    """Return the groups with enough rows when the level is divided among just these, with the rows to begin at."""
    counts = Counter(group for group in part.tolist() if group is not None).most_common()
    for n_groups in range(len(counts), 0, -1):
        fewest = min_rows_without_error(limit, level / n_groups)
        if counts[n_groups - 1][1] >= fewest:
            return {group: max(fewest, (n + 1) // 2) for group, n in counts[:n_groups]}
    return {}
