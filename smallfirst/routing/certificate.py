"""The certificate: from which confidence on may the small model answer, and what is promised about those answers.

The promise is selective risk: of the answers that stay small, at most a share alpha is wrong, at 95 % confidence. The
threshold is found by fixed-sequence testing (Bauer 1991; used for risk control by Angelopoulos et al. 2021): thresholds
are tried from strict to loose, each with an exact binomial test, and the first failure stops the search, so that many
tries need no correction. It holds for requests drawn like the calibration rows; drift ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pydantic

from smallfirst.evaluation.evaluation import EvaluatedRow, Evaluation
from smallfirst.records import Record
from smallfirst.stats import (
    Estimate,
    binomial_tail,
    mcnemar,
    paired_difference,
    rows_needed,
    upper_bound,
    wilson,
)

NOTHING_KEPT = 1.01
"""A threshold no confidence reaches."""


class Promise(Record):
    """What the user wants to be able to say about answers that stay small."""

    at_most_wrong: float = pydantic.Field(default=0.05, gt=0, lt=1)
    """Largest share of kept answers that may be wrong (alpha), in (0, 1)."""
    confidence: float = pydantic.Field(default=0.95, gt=0.5, lt=1)
    """Confidence level of the promise, in (0.5, 1)."""


class ThresholdPoint(Record):
    """What happens if answers at or above one confidence stay small (measured on calibration rows)."""

    threshold: float
    """Confidence asked for, in [0, 1]."""
    n_kept: int
    """Rows answered small."""
    errors_kept: int
    """Of these, wrong."""
    error_bound: float
    """Exact one-sided upper bound on the error of kept answers."""
    routed_accuracy: float
    """Accuracy over all rows when the rest goes to the large model."""
    routed_cost_usd_per_1k: float
    """Cost of 1,000 requests then, drafts included."""


class Certificate(Record):
    """A promise about the answers a Router keeps small, for one model version."""

    issued: bool
    """False if the labels cannot show the promise at any threshold."""
    why: str
    """The promise, or why it is refused and how many labels are missing, in one sentence."""
    promised_error: float
    """Kept answers are wrong at most this often, in [0, 1]."""
    confidence: float
    """Confidence level of the promise, in [0, 1]."""
    threshold: float
    """Answers with at least this confidence are kept; above 1 when none is."""
    n_labels: int
    """Calibration rows used, none of which was used for any other choice."""
    n_kept: int
    """Calibration rows at or above the threshold."""
    errors_kept: int
    """Wrong among them."""
    error_bound: float
    """Exact one-sided upper bound on their error."""
    coverage: Estimate
    """Share of calibration rows kept."""
    below: Literal["escalate", "keep"]
    """What happens to the rest: to the large model, or answered small without the promise."""
    below_why: str
    """The paired evidence behind `below`."""
    below_difference: Estimate | None
    """Accuracy of large minus small on the rows below the threshold; None if the large one was not measured."""
    temperature: float
    """Divides the log-probabilities before they are shown as confidence; fitted on selection rows."""
    curve: tuple[ThresholdPoint, ...]
    """What each threshold would have given, strict to loose."""
    model_fingerprint: str
    """The weights it was made for."""
    dataset_fingerprint: str
    """The calibration rows."""


class Search(Record):
    """Outcome of the threshold search on calibration rows."""

    threshold: float
    """Loosest confidence shown to keep the promise; NOTHING_KEPT if none."""
    n_kept: int
    """Rows at or above it."""
    errors_kept: int
    """Wrong among them."""


def search_threshold(confidence: Sequence[float], correct: Sequence[bool], promise: Promise) -> Search:
    """The loosest threshold at which kept answers are shown to be wrong at most `promise.at_most_wrong` of the time.

    The sequence starts where half the rows are kept (or as many as a promise without any error needs, if that is
    more) and goes down one distinct confidence at a time. The order depends on confidences only, never on which
    answers are right, so the test is exact given the confidences.
    """
    said, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    order = np.argsort(-said, kind="stable")
    said, wrong = said[order], np.cumsum(~right[order])
    first = _fewest_kept(len(said), promise)
    best = Search(threshold=NOTHING_KEPT, n_kept=0, errors_kept=0)
    for n_kept in range(first, len(said) + 1):
        if n_kept < len(said) and said[n_kept] == said[n_kept - 1]:
            continue  # rows of equal confidence are kept together or not at all
        errors = int(wrong[n_kept - 1])
        if binomial_tail(errors, n_kept, promise.at_most_wrong) > 1 - promise.confidence:
            break
        best = Search(threshold=float(said[n_kept - 1]), n_kept=n_kept, errors_kept=errors)
    return best


def _fewest_kept(n: int, promise: Promise) -> int:
    """Where the search begins: half the rows, or as many as the promise needs without any error."""
    fewest = rows_needed(0.0, promise.at_most_wrong, confidence=promise.confidence)
    return max(n + 1 if fewest is None else fewest, (n + 1) // 2)


def certify(
    small: Evaluation,
    large: Evaluation | None,
    promise: Promise,
    *,
    model_fingerprint: str,
    temperature: float = 1.0,
) -> Certificate:
    """The certificate for `small` from its answers on calibration rows, and what to do with the rest.

    `large` on the same rows decides whether doubtful requests are worth sending on: they are, if it was right more
    often than the small model on exactly those rows. Without it they are, on trust. The rows must not have been used
    for any choice.
    """
    confidence = [row.confidence or 0.0 for row in small.rows]
    correct = [row.correct for row in small.rows]
    found = search_threshold(confidence, correct, promise)
    below, why, difference = _what_to_do_below(small, large, found.threshold)
    return Certificate(
        issued=found.n_kept > 0,
        why=_in_words(found, len(small.rows), correct, promise),
        promised_error=promise.at_most_wrong,
        confidence=promise.confidence,
        threshold=found.threshold,
        n_labels=len(small.rows),
        n_kept=found.n_kept,
        errors_kept=found.errors_kept,
        error_bound=upper_bound(found.errors_kept, found.n_kept, confidence=promise.confidence),
        coverage=wilson(found.n_kept, len(small.rows)),
        below=below,
        below_why=why,
        below_difference=difference,
        temperature=temperature,
        curve=_curve(small, large, promise),
        model_fingerprint=model_fingerprint,
        dataset_fingerprint=small.dataset_fingerprint,
    )


def _in_words(found: Search, n: int, correct: Sequence[bool], promise: Promise) -> str:
    share, level = f"{100 * promise.at_most_wrong:g} %", f"{100 * promise.confidence:g} %"
    if found.n_kept:
        bound = upper_bound(found.errors_kept, found.n_kept, confidence=promise.confidence)
        return (
            f"at most {share} of kept answers wrong ({level}): {found.errors_kept} of {found.n_kept} kept "
            f"calibration answers were wrong, so at most {bound:.3f}"
        )
    fewest = rows_needed(0.0, promise.at_most_wrong, confidence=promise.confidence)
    if fewest is not None and n < fewest:
        return f"too few labels: {n} calibration rows; even without an error this promise needs {fewest}"
    return (
        f"not shown: with {n} calibration rows ({n - sum(correct)} of all answers wrong) no threshold keeping "
        f"{_fewest_kept(n, promise)} or more answers shows at most {share} wrong; label more rows, or promise less"
    )


def _what_to_do_below(
    small: Evaluation, large: Evaluation | None, threshold: float
) -> tuple[Literal["escalate", "keep"], str, Estimate | None]:
    doubtful = [row for row in small.rows if (row.confidence or 0.0) < threshold]
    if large is None:
        return "escalate", "the large model was not measured, so it is trusted", None
    both = [(large.by_key[row.key].correct, row.correct) for row in doubtful if row.key in large.by_key]
    if not doubtful:
        return "escalate", "no calibration row falls below the threshold", None
    if not both:
        return "escalate", "the large model was not measured on rows below the threshold, so it is trusted", None
    theirs, ours = [t for t, _ in both], [o for _, o in both]
    difference = paired_difference(theirs, ours)
    p_value = mcnemar(sum(t and not o for t, o in both), sum(o and not t for t, o in both))
    evidence = (
        f"on {len(both)} calibration rows below the threshold large is right on {sum(theirs)}, small on {sum(ours)} "
        f"(difference {difference}, McNemar p = {p_value:.3f})"
    )
    if sum(theirs) > sum(ours):
        return "escalate", evidence, difference
    return "keep", evidence + ": sending them on would cost more and help nobody", difference


def _curve(small: Evaluation, large: Evaluation | None, promise: Promise) -> tuple[ThresholdPoint, ...]:
    """About 60 thresholds, strict to loose, and what each would give on these rows."""
    rows = sorted(small.rows, key=lambda row: -(row.confidence or 0.0))
    n = len(rows)
    points = []
    for n_kept in sorted({_whole_ties(rows, round(share * n)) for share in np.linspace(0, 1, 61)}):
        kept, rest = rows[:n_kept], rows[n_kept:]
        errors = sum(not row.correct for row in kept)
        sent = [large.by_key.get(row.key, row) if large else row for row in rest]
        cost = sum(row.cost_usd for row in rows) + (sum(row.cost_usd for row in sent) if large else 0.0)
        points.append(
            ThresholdPoint(
                threshold=kept[-1].confidence or 0.0 if kept else NOTHING_KEPT,
                n_kept=n_kept,
                errors_kept=errors,
                error_bound=upper_bound(errors, n_kept, confidence=promise.confidence),
                routed_accuracy=(n_kept - errors + sum(row.correct for row in sent)) / max(1, n),
                routed_cost_usd_per_1k=1000 * cost / max(1, n),
            )
        )
    return tuple(points)


def _whole_ties(rows: Sequence[EvaluatedRow], n_kept: int) -> int:
    """`n_kept` and as many more of the sorted rows as share the last confidence: no threshold parts them."""
    while 0 < n_kept < len(rows) and (rows[n_kept].confidence or 0.0) == (rows[n_kept - 1].confidence or 0.0):
        n_kept += 1
    return n_kept
