"""Checks of a candidate by itself: accuracy, metrics of the task by name, labels or fields; and beside the large model.

A value counts as shown at most as far as n perfect rows show it, n / (n + z²) (Wilson 1927): 0.99 takes 381 rows. A
good mean can hide a label that is never found; each interval of a part is widened by the number of checked parts
(Bonferroni): 77 labels of 40 rows show at most 0.77.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import gt
from typing import Annotated

import pydantic

from smallfirst.errors import did_you_mean
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    ConfidenceLevel,
    NonNegative,
    Requirement,
    Share,
    check_interval,
    check_share,
    check_value,
    join_first,
    not_measured,
    share_chance,
    with_rows_needed,
)
from smallfirst.records import Record
from smallfirst.stats import intervals
from smallfirst.stats.intervals import Estimate, wilson
from smallfirst.stats.sample_size import chance_of_interval
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
    requirement = Requirement("accuracy_at_least", minimum, f"accuracy at least {minimum:.3f}")
    return check_share(requirement, n_correct, len(candidate.rows), level)


def check_metric(
    name: str, threshold: float, candidate: Evaluation, level: ConfidenceLevel, *, at_most: bool = False
) -> CheckResult:
    """Check the worse end of a metric in [0, 1], or any with `at_most`; one that the task lacks fails."""
    bound, text = ("at_most", f"at most {threshold:g}") if at_most else ("at_least", f"at least {threshold:.3f}")
    requirement = Requirement(f"{name}_{bound}", threshold, f"{NAMES.get(name, name)} {text}", at_most)
    if name not in candidate.measures:
        if name == "accuracy":
            measured, advice = "accuracy is not a metric of the task", "use its own threshold: accuracy_at_least"
            return not_measured(requirement, measured, advice)
        known = ", ".join(candidate.measures) or "none"
        measured = f'{candidate.candidate} has no metric "{name}"{did_you_mean(name, candidate.measures)}'
        return not_measured(requirement, measured, f'metrics of task "{candidate.task}": {known}')
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
    recalls = [wilson(_n_right(part), part.n_gold, confidence=joint.confidence) for part in checked]
    found = sorted(zip(recalls, checked, strict=True), key=lambda pair: (pair[0].low, pair[1].name))
    failed = [(recall, part) for recall, part in found if recall.low < minimum]
    worst, part = found[0]
    result = check_value(
        requirement,
        passed=not failed,
        measured=f'worst of {len(checked)} is "{part.name}": {joint.format(worst)}',
        advice="; ".join(filter(None, (*_advice(failed, minimum), unchecked))),
        estimate=worst,
    )
    if not failed:
        return result
    n_rows = len(candidate.rows)
    chances = [share_chance(_n_right(part), part.n_gold, minimum, joint, n_rows=n_rows) for _, part in failed]
    return with_rows_needed(result, lambda n_more: min(chance(n_more) for chance in chances))


def check_named_part(name: str, minimum: float, candidate: Evaluation, level: ConfidenceLevel) -> CheckResult:
    """Check the recall of one part; an unknown name fails with the nearest known one."""
    requirement = Requirement(f"parts_at_least.{name}", minimum, f'recall of "{name}" at least {minimum:.3f}')
    if not candidate.parts:
        return _no_parts(requirement, candidate)
    known = {part.name: part for part in candidate.parts}
    if name not in known:
        names = join_first([f'"{part}"' for part in known], MAX_NAMED)
        measured = f'task "{candidate.task}" has no part "{name}"{did_you_mean(name, known)}'
        return not_measured(requirement, measured, f"its parts: {names}")
    part = known[name]
    return check_share(requirement, _n_right(part), part.n_gold, level, n_rows=len(candidate.rows))


def _n_right(part: PartCounts) -> int:
    return min(part.n_right, part.n_gold)


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
    advice = "remove the threshold from the gate, or measure a task that has parts"
    return not_measured(requirement, f'task "{candidate.task}" has no labels or fields to check', advice)


MEASURE_LARGE = "measure the large model on the same rows, or on a sample of them"


class PairedThresholds(Record):
    """Thresholds for the difference to the large model: both answered the same rows, each is compared with itself."""

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
    margin: float, candidate: Evaluation, large: Evaluation | None, level: ConfidenceLevel, *, scores: bool = False
) -> CheckResult:
    """Check the paired difference in accuracy, or in mean graded score, on the rows that both answered."""
    text = f"score at most {margin:.3f} below the large model's" if scores else ""
    name = "score_not_worse_than_large_by" if scores else "not_worse_than_large_by"
    requirement = Requirement(name, margin, text or f"at most {margin:.3f} less accurate than the large model")
    if large is None:
        return not_measured(requirement, "the large model was not measured", MEASURE_LARGE)
    small, big = _by_key(candidate.rows, min), _by_key(large.rows, max)
    keys = sorted(small.keys() & big.keys())  # so that the order of rows changes nothing
    if not keys:
        return not_measured(requirement, f"n=0 of {len(candidate.rows)} rows paired", MEASURE_LARGE)
    if candidate is large or candidate.fingerprint() == large.fingerprint():
        return check_value(requirement, passed=True, measured=f"is the large model itself n={len(keys)}")
    ours, theirs = [small[key][scores] for key in keys], [big[key][scores] for key in keys]
    if not scores:
        won, lost = sum(map(gt, ours, theirs)), sum(map(gt, theirs, ours))
        found = intervals.paired_score_interval(won, lost, len(keys), confidence=level.confidence)
    elif not all(0 <= score <= 1 for score in (*ours, *theirs)):
        return not_measured(requirement, "a score is not in [0, 1]", "fix the scorer, then evaluate both models again")
    else:
        found = intervals.paired_score_difference(ours, theirs, confidence=level.confidence)
        low = min(found.low, found.value + max_lower_bound(found.n, level) - 1)  # that of as many perfect rows
        found = found.model_copy(update={"low": low})
    measured = level.format(found, f" of {len(candidate.rows)} rows paired")
    return check_interval(requirement._replace(threshold=-margin), found, measured, level)


check_score_not_worse = partial(check_not_worse, scores=True)


def _by_key(rows: Iterable[EvaluatedRow], choose: Callable[..., float]) -> dict[str, tuple[float, float]]:
    """Return whether a row is right, and its score; of a row that occurs twice what `choose` takes."""
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        correct, score = found.get(row.key, (row.correct, row.score))
        found[row.key] = choose(correct, row.correct), choose(score, row.score)
    return found
