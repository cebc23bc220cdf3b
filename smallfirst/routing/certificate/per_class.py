"""Certificates by label: an average over all answers can hide one label that is mostly wrong.

Each predicted label has its own fixed sequence of thresholds, begun where half of its rows are kept, and the level is
shared out over the labels by Holm's rule: a label shown down to its last row passes its share on (Bretz et al. 2009).
Labels with too few rows to show anything even without an error are left out of the sharing; that is decided by how
often they are predicted, never by what is right. A label needs 59 kept rows for a promise of 5 %, 130 where 50 labels
share the level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData, CascadeOutcome
from smallfirst.routing.certificate.threshold_search import (
    CascadeThresholds,
    Thresholds,
    fixed_sequence_test,
    min_rows_without_error,
)
from smallfirst.stats.intervals import binomial_tail, upper_bound
from smallfirst.stats.sample_size import rows_for_upper_bound


class ClassCertificate(Record):
    """What is shown about the kept answers with one label."""

    label: str
    """The predicted label."""
    threshold: float
    """Least confidence from which on it is promised; above 1 when it is not."""
    n_kept: int
    """Calibration rows with this answer that the promise speaks of; all kept ones if it is not promised."""
    errors: int
    """Wrong among them."""
    error_bound: float
    """Exact one-sided upper bound on their error, at the level left after sharing it over the labels."""
    certified: bool
    """True if at most the promised share is shown to be wrong."""
    labels_missing: int | None
    """About how many more kept rows with this answer would show it at the error seen; None if none would."""


def certify_per_class(
    answers: CascadeData, promise: Guarantee, found: CascadeThresholds
) -> tuple[ClassCertificate, ...]:
    """The certificates by label, where wrong answers are limited and answers are labels, which come again."""
    said = answers.answer[-1].tolist()
    if promise.at_most_wrong is None or 2 * len(set(said)) > len(said) or answers.labels == "large+gold":
        return ()
    level = (1 - promise.confidence) / (1 if answers.n_stages == 1 else found.n_tested)
    thresholds = (0.0,) if promise.per_class else found.thresholds
    own = promise.per_class
    return certify_classes(answers, thresholds, at_most=promise.at_most_wrong, level=level, own_thresholds=own)


def min_threshold(classes: Sequence[ClassCertificate]) -> float:
    """From where on some label is promised; NOTHING_KEPT if none is."""
    return min((one.threshold for one in classes if one.certified), default=NEVER_ACCEPT)


def guaranteed_rows(answers: CascadeData, classes: Sequence[ClassCertificate]) -> np.ndarray:
    """By row: its label is promised at its confidence."""
    least = {one.label: one.threshold for one in classes if one.certified}
    own = np.array([least.get(label, NEVER_ACCEPT) for label in answers.answer[-1].tolist()])
    return np.asarray(answers.confidence[-1] >= own)


def certify_classes(
    answers: CascadeData, thresholds: Thresholds, *, at_most: float, level: float, own_thresholds: bool = False
) -> tuple[ClassCertificate, ...]:
    """One certificate for every label with kept rows, in alphabetical order; all hold together at 1 - level.

    With one drafting stage each label is searched by itself: with `own_thresholds` it is promised from its own one on,
    otherwise if that is no stricter than `thresholds`. With several stages labels are tested at `thresholds` alone, and
    `level` must already be shared over all vectors that could have been chosen.
    """
    walk, one = answers.walk(thresholds), answers.n_stages == 1
    said, right = _answered(answers, walk)
    confidence = answers.confidence[0] if one else np.where(walk.kept, 1.0, 0.0)
    rows = np.full(answers.n, True) if one else walk.kept
    found = (_sequences if one else _at_walk)(said[rows], confidence[rows], right[rows], at_most=at_most, level=level)
    spared = min((share for _, share in found.values()), default=level)
    certificates = []
    for label in sorted({label for label in said[walk.kept | own_thresholds].tolist() if label is not None}):
        own, share = found.get(label, (NEVER_ACCEPT, spared))
        mine = (said == label) & walk.kept
        shown = own <= (1.0 if own_thresholds else float(confidence[mine].min()))
        kept = (said == label) & (confidence >= own) if shown and own_thresholds else mine
        threshold = NEVER_ACCEPT if not shown else max(own, thresholds[-1]) if one else thresholds[-1]
        counts = (int(kept.sum()), int((kept & ~right).sum()))
        certificates.append(_certificate(label, threshold, counts, at_most, share))
    return tuple(certificates)


def _certificate(
    label: str, threshold: float, counts: tuple[int, int], at_most: float, level: float
) -> ClassCertificate:
    n_kept, errors = counts
    certified, missing = threshold <= 1, None
    if not certified:
        enough = rows_for_upper_bound(errors / max(1, n_kept), at_most, confidence=1 - level, max_rows=20_000)
        missing = None if enough is None else max(1, enough - n_kept)
    return ClassCertificate(
        label=label,
        threshold=threshold,
        n_kept=n_kept,
        errors=errors,
        error_bound=upper_bound(errors, n_kept, confidence=1 - level),
        certified=certified,
        labels_missing=0 if certified else missing,
    )


def _answered(answers: CascadeData, walk: CascadeOutcome) -> tuple[np.ndarray, np.ndarray]:
    """By row: the answer, and whether it is right; with one stage also where it is not kept."""
    if answers.n_stages == 1:
        return answers.answer[0], answers.right[0]
    nothing = np.full(answers.n, None, dtype=object)
    return walk.select_taken(np.vstack([answers.answer, nothing])), walk.right


def _family(said: np.ndarray, at_most: float, level: float) -> dict[str, int]:
    """Labels with rows enough to show something when the level is shared over just these, with the rows needed."""
    counts = Counter(label for label in said.tolist() if label is not None).most_common()
    for n_labels in range(len(counts), 0, -1):
        fewest = min_rows_without_error(at_most, level / n_labels)
        if counts[n_labels - 1][1] >= fewest:
            return {label: max(fewest, (n + 1) // 2) for label, n in counts[:n_labels]}
    return {}


def _sequences(
    said: np.ndarray, confidence: np.ndarray, right: np.ndarray, *, at_most: float, level: float
) -> dict[str, tuple[float, float]]:
    """Threshold and level by label of the family, each label searched by itself."""
    family = _family(said, at_most, level)
    waiting, found = list(family), dict[str, tuple[float, float]]()
    while waiting:
        share, n_before = level / len(waiting), len(waiting)
        for label in list(waiting):
            rows = said == label
            mine = fixed_sequence_test(confidence[rows], right[rows], at_most, level=share, first=family[label])
            found[label] = (mine.threshold, share)
            if mine.n_kept == rows.sum():
                waiting.remove(label)
        if len(waiting) == n_before:
            break
    return found


def _at_walk(
    said: np.ndarray, confidence: np.ndarray, right: np.ndarray, *, at_most: float, level: float
) -> dict[str, tuple[float, float]]:
    """The same at one walk, by Holm (1979): the threshold is the least confidence of the rows, or NOTHING_KEPT."""
    wrong = {label: int((~right[said == label]).sum()) for label in _family(said, at_most, level)}
    p_values = {label: binomial_tail(n, int((said == label).sum()), at_most) for label, n in wrong.items()}
    found, passed = dict[str, tuple[float, float]](), True
    for place, label in enumerate(sorted(p_values, key=lambda one: p_values[one])):
        share = level / (len(p_values) - place)
        passed = passed and p_values[label] <= share
        found[label] = (float(confidence.min()) if passed else NEVER_ACCEPT, share)
    return found
