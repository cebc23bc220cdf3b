"""Certificates by group, because an average over all answers can hide one group that is mostly wrong.

A group is the answers with one predicted label, or the requests with one value of a tag (customer, channel). Each has
its own fixed sequence of thresholds; Holm's method divides the level among those with enough rows to show anything
(Bretz et al. 2009). The claim is about the family: with the guarantee's confidence *every* certified group keeps the
limit. A group needs 59 accepted rows for a limit of 5 %, 130 where 50 groups share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from smallfirst.errors import DataError
from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import LABEL, Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData
from smallfirst.routing.certificate.threshold_search import CascadeThresholds, Thresholds, search_rows
from smallfirst.stats.intervals import upper_bound
from smallfirst.stats.sample_size import min_rows_without_error, rows_for_upper_bound


class GroupCertificate(Record):
    """What is shown about the accepted answers of one group."""

    label: str
    """The predicted label, or the value of the guarantee's tag."""
    threshold: float
    """Least confidence at which it is certified; above 1 when it is not."""
    n_accepted: int
    """Calibration rows of the group that are certified; all accepted ones if it is not certified."""
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
    """Return the certificates by group, where errors are limited and groups (by default labels) repeat."""
    data = by_group(data, guarantee)
    answers = data.answer[-1].tolist()
    if guarantee.max_error is None or 2 * len(set(answers)) > len(answers):
        return ()
    level = (1 - guarantee.confidence) / (1 if data.n_stages == 1 else found.n_tested)
    own = bool(guarantee.grouped_by)
    thresholds = (0.0,) if own else found.thresholds
    return certify_groups(data, thresholds, limit=guarantee.max_error, level=level, own_thresholds=own)


def by_group(data: CascadeData, guarantee: Guarantee) -> CascadeData:
    """Return the data with the value of the guarantee's tag in place of each answer; as it is without a tag.

    Raise DataError if calibration rows lack the tag.
    """
    name = guarantee.grouped_by
    if name in ("", LABEL):
        return data
    values = data.tags.get(name, np.full(data.n, "", dtype=object))
    if missing := int((values == "").sum()):
        raise DataError(
            f"routing.guarantee.per_group: {missing} of {data.n} calibration rows have no {name}",
            hint=f"name the column in data.columns.tags: [{name}] and run smallfirst evaluate task.yaml",
        )
    return replace(data, answer=np.tile(values, (data.n_stages, 1)))


def guaranteed_rows(data: CascadeData, guarantee: Guarantee, classes: Sequence[GroupCertificate]) -> np.ndarray:
    """Return by row whether its group is certified at its confidence."""
    data = by_group(data, guarantee)
    least = {one.label: one.threshold for one in classes if one.certified}
    own = np.array([least.get(label, NEVER_ACCEPT) for label in data.answer[-1].tolist()])
    return np.asarray(data.confidence[-1] >= own)


def certify_groups(
    data: CascadeData, thresholds: Thresholds, *, limit: float, level: float, own_thresholds: bool = False
) -> tuple[GroupCertificate, ...]:
    """Return one certificate for every group with accepted rows, in alphabetical order; all hold together at 1 - level.

    With one stage each group is searched by itself. With several they are tested at `thresholds` alone, which is Holm's
    method (1979), and `level` must already be divided among all vectors that could have been chosen.
    """
    outcome, single = data.outcome(thresholds), data.n_stages == 1
    answers, right = data.answer[0], data.right[0]
    if not single:
        nothing = np.full(data.n, None, dtype=object)
        answers, right = outcome.select(np.vstack([data.answer, nothing])), outcome.right
    confidence = data.confidence[0] if single else np.where(outcome.accepted, 1.0, 0.0)
    rows = np.full(data.n, True) if single else outcome.accepted
    found = _test_sequences(answers[rows], confidence[rows], right[rows], limit=limit, level=level)
    left = min((share for _, share in found.values()), default=level)
    certificates = []
    for label in sorted({label for label in answers[outcome.accepted | own_thresholds].tolist() if label is not None}):
        own, share = found.get(label, (NEVER_ACCEPT, left))
        mine = (answers == label) & outcome.accepted
        shown = own <= (1.0 if own_thresholds else float(confidence[mine].min()))
        accepted = (answers == label) & (confidence >= own) if shown and own_thresholds else mine
        threshold = NEVER_ACCEPT if not shown else max(own, thresholds[-1]) if single else thresholds[-1]
        counts = (int(accepted.sum()), int((accepted & ~right).sum()))
        certificates.append(_certificate(label, threshold, counts, limit, share))
    return tuple(certificates)


def _certificate(label: str, threshold: float, counts: tuple[int, int], limit: float, level: float) -> GroupCertificate:
    n_accepted, errors = counts
    certified, missing = threshold <= 1, None
    if not certified:
        rate = errors / max(1, n_accepted)
        enough = rows_for_upper_bound(rate, limit, confidence=1 - level, max_rows=20_000)
        missing = None if enough is None else max(1, enough - n_accepted)
    return GroupCertificate(
        label=label,
        threshold=threshold,
        n_accepted=n_accepted,
        n_errors=errors,
        error_bound=upper_bound(errors, n_accepted, confidence=1 - level),
        certified=certified,
        labels_missing=0 if certified else missing,
    )


def _testable_labels(answers: np.ndarray, limit: float, level: float) -> dict[str, int]:
    """Return the labels with enough rows when the level is divided among just these, with the rows needed."""
    counts = Counter(label for label in answers.tolist() if label is not None).most_common()
    for n_labels in range(len(counts), 0, -1):
        fewest = min_rows_without_error(limit, level / n_labels)
        if counts[n_labels - 1][1] >= fewest:
            return {label: max(fewest, (n + 1) // 2) for label, n in counts[:n_labels]}
    return {}


def _test_sequences(
    answers: np.ndarray, confidence: np.ndarray, right: np.ndarray, *, limit: float, level: float
) -> dict[str, tuple[float, float]]:
    labels = _testable_labels(answers, limit, level)
    open_labels, found = list(labels), dict[str, tuple[float, float]]()
    while open_labels:
        share, n_before = level / len(open_labels), len(open_labels)
        for label in list(open_labels):
            rows = answers == label
            result = search_rows(confidence[rows], right[rows], limit, share, [(labels[label], 1.0)])
            found[label] = (result.threshold, share)
            if result.n_accepted == rows.sum():
                open_labels.remove(label)
        if len(open_labels) == n_before:
            break
    return found
