"""Checks of accuracy and of any metric of the task by its name.

A value counts as shown at most as far as n perfect rows show it, n / (n + z²) (Wilson 1927): 0.99 takes 381 rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from smallfirst.errors import did_you_mean
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    ConfidenceLevel,
    NonNegative,
    Requirement,
    Share,
    check_maximum,
    check_minimum,
    not_measured,
    rows_for_width,
)
from smallfirst.records import Record
from smallfirst.stats import intervals
from smallfirst.stats.intervals import Estimate
from smallfirst.stats.sample_size import rows_for_lower_bound

NAMES = {"macro_f1": "macro-F1"}


class MetricThresholds(Record):
    """Thresholds for accuracy and for the task's own metrics."""

    accuracy_at_least: Share | None = None
    """The lower end of the accuracy interval must reach this, in [0, 1]. 1, which no rows can show: no candidate goes
    live alone, only the part of its requests that a certificate covers."""
    macro_f1_at_least: Share | None = None
    """The lower end of the macro-F1 interval must reach this, in [0, 1]."""
    measures_at_least: dict[str, Share] = {}
    """Minimum for metrics of the task by name, such as `field_f1` or `token_f1` (lower end of the interval)."""
    measures_at_most: dict[str, NonNegative] = {}
    """Maximum for metrics of the task by name, such as `missing`, `invented` or `mean_cost` (upper end)."""


def check_metrics(gate: MetricThresholds, inputs: CheckInputs) -> Iterator[CheckResult]:
    """Yield a result for each declared threshold."""
    candidate, level = inputs.candidate, inputs.level
    if gate.accuracy_at_least is not None:
        yield check_accuracy(gate.accuracy_at_least, candidate, level)
    if gate.macro_f1_at_least is not None:
        yield check_metric_minimum("macro_f1", gate.macro_f1_at_least, candidate, level)
    for name, minimum in gate.measures_at_least.items():
        yield check_metric_minimum(name, minimum, candidate, level)
    for name, maximum in gate.measures_at_most.items():
        yield check_metric_maximum(name, maximum, candidate, level)


def check_accuracy(minimum: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """Check the lower end of Wilson's interval over the rows."""
    n_correct = sum(row.correct for row in candidate.rows)
    found = intervals.wilson(n_correct, len(candidate.rows), confidence=level.confidence)
    return check_minimum(
        Requirement("accuracy_at_least", minimum, f"accuracy at least {minimum:.3f}"),
        found,
        level.format(found),
        lambda: rows_for_lower_bound(found.value, minimum, confidence=level.confidence),
    )


def check_metric_minimum(name: str, minimum: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """Check the lower end of a metric in [0, 1]; a metric that the task lacks fails."""
    requirement = Requirement(f"{name}_at_least", minimum, f"{NAMES.get(name, name)} at least {minimum:.3f}")
    if name not in candidate.measures:
        return _unknown_metric(requirement, name, candidate)
    stored = candidate.measures[name]
    wide = level.widen(stored)
    ends = {"low": min(wide.low, max_lower_bound(wide.n, level)), "high": min(wide.high, max(1.0, stored.high))}
    found = wide.model_copy(update=ends)
    return check_minimum(requirement, found, level.format(found), lambda: _rows(wide, minimum, level, minimum))


def check_metric_maximum(name: str, maximum: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """Check the upper end of a metric such as `invented` or `mean_cost`; a metric that the task lacks fails."""
    requirement = Requirement(f"{name}_at_most", maximum, f"{NAMES.get(name, name)} at most {maximum:g}")
    if name not in candidate.measures:
        return _unknown_metric(requirement, name, candidate)
    wide = level.widen(candidate.measures[name])
    found = wide.model_copy(update={"high": max(wide.high, 1 - max_lower_bound(wide.n, level))})
    return check_maximum(
        requirement,
        found,
        level.format(found),
        lambda _, minimum: _rows(_negated(wide), minimum, level, 1 - maximum),
    )


def max_lower_bound(n: int, level: ConfidenceLevel) -> float:
    """Return the lower end of Wilson's interval when all `n` rows are right: so few rows show nothing higher."""
    return n / (n + level.z**2)


def cap_lower_bound(estimate: Estimate, level: ConfidenceLevel) -> Estimate:
    """Put the low end at least as far below the value as that of as many perfect rows is below 1."""
    return estimate.model_copy(
        update={"low": min(estimate.low, estimate.value + max_lower_bound(estimate.n, level) - 1)}
    )


def min_perfect_rows(share: float, level: ConfidenceLevel) -> int | None:
    """Return the fewest rows, all right, that show at least `share`; None if none do."""
    return math.ceil(share * level.z**2 / (1 - share) - 1e-9) if share < 1 else None


def _negated(estimate: Estimate) -> Estimate:
    return Estimate(value=-estimate.value, low=-estimate.high, high=-estimate.low, n=estimate.n)


def _rows(wide: Estimate, minimum: float, level: ConfidenceLevel, share: float) -> int | None:
    """Return about the rows that make the interval narrow enough, and enough of them that perfect ones show `share`."""
    by_width, perfect = rows_for_width(wide, minimum), min_perfect_rows(share, level)
    return None if by_width is None or perfect is None else max(by_width, perfect)


def _unknown_metric(requirement: Requirement, name: str, candidate: Evaluation) -> CheckResult:
    if name == "accuracy":
        return not_measured(
            requirement, "accuracy is not a metric of the task", "use its own threshold: accuracy_at_least"
        )
    known = ", ".join(candidate.measures) or "none"
    return not_measured(
        requirement,
        f'{candidate.candidate} has no metric "{name}"{did_you_mean(name, candidate.measures)}',
        f'metrics of task "{candidate.task}": {known}',
    )
