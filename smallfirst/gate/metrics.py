"""Checks of a candidate by itself: accuracy, metrics of the task by name, single labels or fields.

A value counts as shown at most as far as n perfect rows show it, n / (n + z²) (Wilson 1927): 0.99 takes 381 rows. A
good mean can hide a label that is never found; each interval of a part is widened by the number of checked parts
(Bonferroni): 77 labels of 40 rows show at most 0.77.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import pydantic

from smallfirst.errors import did_you_mean
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    ConfidenceLevel,
    NonNegative,
    Requirement,
    Share,
    check_interval,
    check_value,
    join_first,
    not_measured,
    with_rows_needed,
)
from smallfirst.records import Record
from smallfirst.stats import intervals
from smallfirst.stats.intervals import Estimate
from smallfirst.stats.sample_size import chance_of_interval, chance_of_share
from smallfirst.tasks.task import PartCounts

NAMES = {"macro_f1": "macro-F1"}
MAX_NAMED = 5
"""Parts named in one message; the others are counted."""


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
        yield check_metric("macro_f1", gate.macro_f1_at_least, candidate, level)
    for name, minimum in gate.measures_at_least.items():
        yield check_metric(name, minimum, candidate, level)
    for name, maximum in gate.measures_at_most.items():
        yield check_metric(name, maximum, candidate, level, at_most=True)


def check_accuracy(minimum: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """Check the lower end of Wilson's interval over the rows."""
    n_correct = sum(row.correct for row in candidate.rows)
    found = intervals.wilson(n_correct, len(candidate.rows), confidence=level.confidence)
    return check_interval(
        Requirement("accuracy_at_least", minimum, f"accuracy at least {minimum:.3f}"),
        found,
        level.format(found),
        level,
        lambda n_more: chance_of_share(n_correct, found.n, n_more, minimum, confidence=level.confidence),
    )


def check_metric(
    name: str, threshold: float, candidate: Evaluation, level: ConfidenceLevel, *, at_most: bool = False
) -> CheckResult:
    """Check the worse end of a metric in [0, 1], or any with `at_most`; one that the task lacks fails."""
    bound, text = ("at_most", f"at most {threshold:g}") if at_most else ("at_least", f"at least {threshold:.3f}")
    requirement = Requirement(f"{name}_{bound}", threshold, f"{NAMES.get(name, name)} {text}", at_most)
    if name not in candidate.measures:
        return _unknown_metric(requirement, name, candidate)
    stored = candidate.measures[name]
    wide = level.widen(stored)
    shown = max_lower_bound(wide.n, level)
    ends = {"low": min(wide.low, shown), "high": min(wide.high, max(1.0, stored.high))}
    found = wide.model_copy(update={"high": max(wide.high, 1 - shown)} if at_most else ends)

    share = 1 - threshold if at_most else threshold

    def chance(n_more: int) -> float:
        enough = max_lower_bound(wide.n + n_more, level) >= share
        return chance_of_interval(wide, threshold, n_more, z=level.z, at_most=at_most) if enough else 0.0

    return check_interval(requirement, found, level.format(found), level, chance)


def max_lower_bound(n: int, level: ConfidenceLevel) -> float:
    """Return the lower end of Wilson's interval when all `n` rows are right: so few rows show nothing higher."""
    return n / (n + level.z**2)


def cap_lower_bound(estimate: Estimate, level: ConfidenceLevel) -> Estimate:
    """Put the low end at least as far below the value as that of as many perfect rows is below 1."""
    return estimate.model_copy(
        update={"low": min(estimate.low, estimate.value + max_lower_bound(estimate.n, level) - 1)}
    )


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


class PerClassThresholds(Record):
    """Thresholds for the recall of labels or fields."""

    each_part_at_least: Share | None = None
    """Recall of every label or field: its lower end, at a level corrected for the number of parts, must reach this."""
    part_rows: Annotated[int, pydantic.Field(ge=1)] = 20
    """Labels or fields that occur fewer times are named, but not held to `each_part_at_least`."""
    parts_at_least: dict[str, Share] = {}
    """The lower end of the recall of these labels or fields must reach this."""


def check_per_class(gate: PerClassThresholds, inputs: CheckInputs) -> Iterator[CheckResult]:
    """Yield a result for each declared threshold."""
    if gate.each_part_at_least is not None:
        yield check_each_part(gate.each_part_at_least, inputs.candidate, inputs.level, part_rows=gate.part_rows)
    for name, minimum in gate.parts_at_least.items():
        yield check_named_part(name, minimum, inputs.candidate, inputs.level)


def check_each_part(minimum: float, candidate: Evaluation, level: ConfidenceLevel, *, part_rows: int) -> CheckResult:
    """Check the recall of every part that occurs at least `part_rows` times."""
    requirement = Requirement("each_part_at_least", minimum, f"recall of each part at least {minimum:.3f}")
    if not candidate.parts:
        return _no_parts(requirement, candidate)
    rare = [part for part in candidate.parts if part.n_gold < part_rows]
    checked = [part for part in candidate.parts if part.n_gold >= part_rows]
    joint = level.for_parts(len(checked))
    unchecked = _unchecked(rare, part_rows)
    if not checked:
        return not_measured(requirement, f"no part has {part_rows} rows", unchecked)
    found = sorted(((_recall(part, joint), part) for part in checked), key=lambda pair: (pair[0].low, pair[1].name))
    failed = [(recall, part) for recall, part in found if recall.low < minimum]
    worst, part = found[0]
    result = check_value(
        requirement,
        passed=not failed,
        measured=f'worst of {len(checked)} is "{part.name}": {joint.format(worst)}',
        advice="; ".join(filter(None, (*_advice(failed, minimum), unchecked))),
    ).model_copy(update={"estimate": worst})
    if not failed:
        return result
    chances = [_chance(part, minimum, joint, len(candidate.rows)) for _, part in failed]
    return with_rows_needed(result, lambda n_more: min(chance(n_more) for chance in chances))


def check_named_part(name: str, minimum: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """Check the recall of one part; an unknown name fails with the nearest known one."""
    requirement = Requirement(f"parts_at_least.{name}", minimum, f'recall of "{name}" at least {minimum:.3f}')
    if not candidate.parts:
        return _no_parts(requirement, candidate)
    known = {part.name: part for part in candidate.parts}
    if name not in known:
        names = join_first([f'"{part}"' for part in known], MAX_NAMED)
        return not_measured(
            requirement,
            f'task "{candidate.task}" has no part "{name}"{did_you_mean(name, known)}',
            f"its parts: {names}",
        )
    recall = _recall(known[name], level)
    chance = _chance(known[name], minimum, level, len(candidate.rows))
    return check_interval(requirement, recall, level.format(recall), level, chance)


def _recall(part: PartCounts, level: ConfidenceLevel) -> Estimate:
    return intervals.wilson(min(part.n_right, part.n_gold), part.n_gold, confidence=level.confidence)


def _chance(part: PartCounts, minimum: float, level: ConfidenceLevel, n_rows: int) -> Callable[[int], float]:
    """Return how likely so many test rows more, of which as large a share as now is of the part, are to show it."""
    n_right, n = min(part.n_right, part.n_gold), part.n_gold

    def chance(n_more: int) -> float:
        return chance_of_share(n_right, n, n_more * n // max(1, n_rows), minimum, confidence=level.confidence)

    return chance


def _advice(failed: Sequence[tuple[Estimate, PartCounts]], minimum: float) -> Iterator[str]:
    weak = [f'"{part.name}" {recall.value:.3f}' for recall, part in failed if recall.value < minimum]
    short = [f'"{part.name}" (n={part.n_gold})' for recall, part in failed if recall.value >= minimum]
    if weak:
        yield f"below the threshold: {join_first(weak, MAX_NAMED)}"
    if short:
        yield f"not shown by the rows there are: {join_first(short, MAX_NAMED)}"


def _unchecked(rare: Sequence[PartCounts], part_rows: int) -> str:
    ordered = sorted(rare, key=lambda part: (part.n_gold, part.name))
    names = join_first([f'"{part.name}" (n={part.n_gold})' for part in ordered], MAX_NAMED)
    return f"not checked, with fewer than {part_rows} rows: {names}" if names else ""


def _no_parts(requirement: Requirement, candidate: Evaluation) -> CheckResult:
    return not_measured(
        requirement,
        f'task "{candidate.task}" has no labels or fields to check',
        "remove the threshold from the gate, or measure a task that has parts",
    )
