"""Certificates by group, because an average over all answers can hide one group that is mostly wrong.

A group is the answers with one predicted label, or the requests with one value of a tag (customer, channel). Each has
its own fixed sequence of thresholds; Holm's method divides the level among those with enough rows to show anything
(Bretz et al. 2009). The claim is about the family: with the guarantee's confidence *every* certified group keeps the
limit. A group needs 59 accepted rows for a limit of 5 %, 130 where 50 groups share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from smallfirst.errors import DataError
from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import LABEL, Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData
from smallfirst.routing.certificate.threshold_search import CascadeThresholds, search_rows
from smallfirst.stats.intervals import upper_bound
from smallfirst.stats.sample_size import min_rows_without_error, rows_for_upper_bound


class GroupCertificate(Record):
    """What is shown about the accepted answers of one group."""

    label: str
    """The predicted label, or the value of the guarantee's tag."""
    threshold: float
    """Least confidence at which it is certified; above 1 when it is not."""
    n_accepted: int
    """Calibration rows of the group that are certified; all of its rows if it is not certified."""
    n_errors: int
    """Wrong among them."""
    error_bound: float
    """Exact one-sided upper bound on their error, at this group's share of the level."""
    certified: bool
    """True if the error is shown to be within the limit."""
    labels_missing: int | None
    """About how many more accepted rows of the group would show it at the measured error; None if none would."""


def certify_per_group(
    data: CascadeData, guarantee: Guarantee, found: CascadeThresholds
) -> tuple[GroupCertificate, ...]:
    """Return the certificates of the groups of one stage's answers, in alphabetical order; none unless asked for.

    All hold together at the level of `found`. Raise DataError if calibration rows lack the tag that groups them.
    """
    if not guarantee.grouped_by or guarantee.max_error is None:
        return ()
    groups, limit = groups_of(data, guarantee), guarantee.max_error
    confidence, right = data.confidence[-1], data.right[-1]
    tested = _test_sequences(groups, confidence, right, limit=limit, level=found.level)
    left = min((share for _, share in tested.values()), default=found.level)
    certificates = []
    for label in sorted({group for group in groups.tolist() if group is not None}):
        threshold, share = tested.get(label, (NEVER_ACCEPT, left))
        accepted = (groups == label) & ((confidence >= threshold) | (threshold > 1))
        certificates.append(_certificate(label, threshold, accepted, right, limit=limit, level=share))
    return tuple(certificates)


def groups_of(data: CascadeData, guarantee: Guarantee) -> np.ndarray:
    """Return by row the last stage's answer or the value of the guarantee's tag. Raise DataError if rows lack it."""
    name = guarantee.grouped_by
    if name in ("", LABEL):
        return np.asarray(data.answer[-1])
    values = data.tags.get(name, np.full(data.n, "", dtype=object))
    if missing := int((values == "").sum()):
        raise DataError(
            f"routing.guarantee.per_group: {missing} of {data.n} calibration rows have no {name}",
            hint=f"name the column in data.columns.tags: [{name}] and run smallfirst evaluate task.yaml",
        )
    return np.asarray(values)


def guaranteed_rows(data: CascadeData, guarantee: Guarantee, classes: Sequence[GroupCertificate]) -> np.ndarray:
    """Return by row whether its group is certified at its confidence."""
    least = {one.label: one.threshold for one in classes if one.certified}
    own = np.array([least.get(group, NEVER_ACCEPT) for group in groups_of(data, guarantee).tolist()])
    return np.asarray(data.confidence[-1] >= own)


def _certificate(
    label: str, threshold: float, accepted: np.ndarray, right: np.ndarray, *, limit: float, level: float
) -> GroupCertificate:
    n_accepted, errors = int(accepted.sum()), int((accepted & ~right).sum())
    certified = threshold <= 1
    missing: int | None = 0
    if not certified:
        enough = rows_for_upper_bound(errors / max(1, n_accepted), limit, confidence=1 - level, max_rows=20_000)
        missing = None if enough is None else max(1, enough - n_accepted)
    return GroupCertificate(
        label=label,
        threshold=threshold,
        n_accepted=n_accepted,
        n_errors=errors,
        error_bound=upper_bound(errors, n_accepted, confidence=1 - level),
        certified=certified,
        labels_missing=missing,
    )


def _testable(groups: np.ndarray, limit: float, level: float) -> dict[str, int]:
    """Return the groups with enough rows when the level is divided among just these, with the rows needed."""
    counts = Counter(group for group in groups.tolist() if group is not None).most_common()
    for n_groups in range(len(counts), 0, -1):
        fewest = min_rows_without_error(limit, level / n_groups)
        if counts[n_groups - 1][1] >= fewest:
            return {group: max(fewest, (n + 1) // 2) for group, n in counts[:n_groups]}
    return {}


def _test_sequences(
    groups: np.ndarray, confidence: np.ndarray, right: np.ndarray, *, limit: float, level: float
) -> dict[str, tuple[float, float]]:
    """Return by testable group its threshold and its share of the level; one shown throughout hands its share on."""
    first = _testable(groups, limit, level)
    open_groups, found = list(first), dict[str, tuple[float, float]]()
    while open_groups:
        share, n_before = level / len(open_groups), len(open_groups)
        for group in list(open_groups):
            rows = groups == group
            result = search_rows(confidence[rows], right[rows], limit, share, [(first[group], 1.0)])
            found[group] = (result.threshold, share)
            if result.n_accepted == rows.sum():
                open_groups.remove(group)
        if len(open_groups) == n_before:
            break
    return found
