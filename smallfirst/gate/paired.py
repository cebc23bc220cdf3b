"""Checks against the large model: both answered the same rows, and each row is compared with itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    ConfidenceLevel,
    Requirement,
    Share,
    check_interval,
    check_value,
    not_measured,
)
from smallfirst.gate.metrics import cap_lower_bound
from smallfirst.records import Record
from smallfirst.stats.intervals import paired_score_difference, paired_score_interval

MEASURE_LARGE = "measure the large model on the same rows, or on a sample of them"


class PairedThresholds(Record):
    """Thresholds for the difference to the large model."""

    not_worse_than_large_by: Share | None = None
    """Accuracy may be at most this much below the large model's (lower end of the paired difference)."""
    score_not_worse_than_large_by: Share | None = None
    """The mean graded score may be at most this much below the large model's (lower end of the paired difference)."""


def check_paired(gate: PairedThresholds, inputs: CheckInputs) -> Iterator[CheckResult]:
    """Yield a result for each declared threshold."""
    if gate.not_worse_than_large_by is not None:
        yield check_not_worse(gate.not_worse_than_large_by, inputs.candidate, inputs.large, inputs.level)
    if gate.score_not_worse_than_large_by is not None:
        yield check_score_not_worse(gate.score_not_worse_than_large_by, inputs.candidate, inputs.large, inputs.level)


def check_not_worse(
    margin: float, candidate: Evaluation, large: Evaluation | None, level: ConfidenceLevel
) -> CheckResult:
    """Check the paired difference in accuracy on the rows that both answered."""
    text = f"at most {margin:.3f} less accurate than the large model"
    requirement = Requirement("not_worse_than_large_by", margin, text)
    pairs = _pairs(requirement, candidate, large)
    if isinstance(pairs, CheckResult):
        return pairs
    ours = sum(small.correct and not big.correct for small, big in pairs)
    theirs = sum(big.correct and not small.correct for small, big in pairs)
    found = paired_score_interval(ours, theirs, len(pairs), confidence=level.confidence)

    measured = level.format(found, f" of {len(candidate.rows)} rows paired")
    minimum = requirement._replace(threshold=-margin)
    return check_interval(minimum, found, measured, level)


def check_score_not_worse(
    margin: float, candidate: Evaluation, large: Evaluation | None, level: ConfidenceLevel
) -> CheckResult:
    """Check the paired difference in mean graded score on the rows that both answered."""
    text = f"score at most {margin:.3f} below the large model's"
    requirement = Requirement("score_not_worse_than_large_by", margin, text)
    pairs = _pairs(requirement, candidate, large)
    if isinstance(pairs, CheckResult):
        return pairs
    ours, theirs = [small.score for small, _ in pairs], [big.score for _, big in pairs]
    if not all(0 <= score <= 1 for score in (*ours, *theirs)):
        return not_measured(requirement, "a score is not in [0, 1]", "fix the scorer, then evaluate both models again")
    found = cap_lower_bound(paired_score_difference(ours, theirs, confidence=level.confidence), level)
    measured = level.format(found, f" of {len(candidate.rows)} rows paired")
    minimum = requirement._replace(threshold=-margin)
    return check_interval(minimum, found, measured, level)


class _Outcome(NamedTuple):
    correct: bool
    score: float


def _pairs(
    requirement: Requirement, candidate: Evaluation, large: Evaluation | None
) -> list[tuple[_Outcome, _Outcome]] | CheckResult:
    """Pair the outcomes of both by row, ordered by key so that row order changes nothing; or return the result."""
    n = len(candidate.rows)
    if large is None:
        return not_measured(requirement, "the large model was not measured", MEASURE_LARGE)
    ours, theirs = _by_key(candidate.rows, worst=True), _by_key(large.rows, worst=False)
    both = [(ours[key], theirs[key]) for key in sorted(ours.keys() & theirs.keys())]
    if not both:
        return not_measured(requirement, f"n=0 of {n} rows paired", MEASURE_LARGE)
    if candidate is large or candidate.fingerprint() == large.fingerprint():
        return check_value(requirement, passed=True, measured=f"is the large model itself n={n}")
    return both


def _by_key(rows: Iterable[EvaluatedRow], *, worst: bool) -> dict[str, _Outcome]:
    choose = min if worst else max
    found: dict[str, _Outcome] = {}
    for row in rows:
        now = _Outcome(row.correct, row.score)
        before = found.get(row.key, now)
        found[row.key] = _Outcome(choose(before.correct, now.correct), choose(before.score, now.score))
    return found
