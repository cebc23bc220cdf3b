"""One check of the gate: its result, its confidence level, and the advice if it failed.

Advice assumes that the measured rates stay as they are, which is a guess; hence two digits and the word "about".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import pydantic
from scipy import stats as scipy_stats

from smallfirst.data.quality.leaks import LeakReport
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate
from smallfirst.stats.sample_size import round_up_to_two_digits

MAX_ADVISED_ROWS = 100_000
"""Advice never asks for more labels than this."""
STORED_CONFIDENCE = 0.95
"""Confidence level of every interval stored in an Evaluation."""

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


class Requirement(NamedTuple):
    """A threshold that the gate declares."""

    name: str
    """Key of the threshold in task.yaml."""
    threshold: float
    text: str
    at_most: bool = False
    """True for a maximum, which the upper end of an interval must not exceed."""


class CheckResult(Record):
    """One requirement of the gate and what was measured."""

    name: str = ""
    """Key of the threshold in task.yaml."""
    threshold: float | None = None
    """Value of the threshold; None where a check has none."""
    requirement: str
    """The requirement in words, threshold included."""
    measured: str
    """The measured value with interval and n."""
    passed: bool
    """Whether the requirement is met."""
    advice: str = ""
    """How to meet it: more labels or a better model. For a check that passed: what it could not cover."""
    estimate: Estimate | None = None
    """The value with the interval that was compared; None for a plain number and if nothing was measured."""
    more_rows: int | None = None
    """About how many more labelled rows would show it; None if more rows alone would not."""

    @property
    def shortfall(self) -> float:
        """How far the compared end of the interval misses the threshold, as a share of it; infinite if unknown."""
        if self.passed or self.estimate is None or self.threshold is None:
            return 0.0 if self.passed else math.inf
        end = self.estimate.high if self.name.endswith("_at_most") else self.estimate.low
        return abs(end - self.threshold) / max(abs(self.threshold), 1e-9)


class CheckInputs(NamedTuple):
    """What checks may look at."""

    candidate: Evaluation
    """The candidate on the rows that the thresholds are about."""
    level: ConfidenceLevel
    large: Evaluation | None = None
    """The large model; it may cover a sample of the rows."""
    leaks: LeakReport | None = None
    """Leaks between training and test rows; None if not looked for."""
    with_copies: Evaluation | None = None
    """The candidate on all rows, where `candidate` is restricted to those that repeat no training row."""


class ConfidenceLevel:
    """The level 1 - 0.05 / (comparisons · parts) of intervals that are compared together (Bonferroni)."""

    def __init__(self, comparisons: float, parts: int = 1) -> None:
        self.comparisons, self.parts = comparisons, parts
        self.confidence = 1 - 0.05 / (comparisons * parts)
        self.z = _z(self.confidence)

    def for_parts(self, parts: int) -> ConfidenceLevel:
        return ConfidenceLevel(self.comparisons, max(1, parts))

    @property
    def note(self) -> str:
        """The level and its reason in brackets; empty at 95 %."""
        parts = [f"{self.parts} parts"] if self.parts > 1 else []
        reason = " and ".join([*(["plans"] if self.comparisons > 1 else []), *parts])
        return f" ({100 * self.confidence:.4g} % interval: {reason} share the level)" if reason else ""

    def format(self, estimate: Estimate, suffix: str = "") -> str:
        return f"{estimate} n={estimate.n}{suffix}{self.note}"

    def widen(self, stored: Estimate) -> Estimate:
        """Widen a stored 95 % interval to this level, each side by the ratio of normal quantiles."""
        by = self.z / _z(STORED_CONFIDENCE)
        low, high = stored.value - by * (stored.value - stored.low), stored.value + by * (stored.high - stored.value)
        return stored.model_copy(update={"low": max(low, 0.0) if stored.low >= 0 else low, "high": high})


def not_measured(requirement: Requirement, measured: str, advice: str) -> CheckResult:
    """Return the failing result of a requirement without a value to compare."""
    return check_value(requirement, passed=False, measured=measured, advice=advice)


def check_value(requirement: Requirement, *, passed: bool, measured: str, advice: str = "") -> CheckResult:
    """Return the result for a plain number, which has no interval."""
    return CheckResult(
        name=requirement.name,
        threshold=requirement.threshold,
        requirement=requirement.text,
        measured=measured,
        passed=passed,
        advice=advice,
    )


def check_interval(
    requirement: Requirement, estimate: Estimate, measured: str, rows_for: Callable[[], int | None] | None = None
) -> CheckResult:
    """Return the result of a threshold that the worse end of an interval must reach.

    `rows_for()` is how many rows would show it; left out, those that make the interval narrow enough.
    """
    sign, end = (-1, estimate.high) if requirement.at_most else (1, estimate.low)
    passed = estimate.n > 0 and sign * end >= sign * requirement.threshold
    result = check_value(requirement, passed=passed, measured=measured).model_copy(update={"estimate": estimate})
    if passed:
        return result
    more = None
    if estimate.n == 0:
        advice = "no row was measured"
    elif not (math.isfinite(estimate.value) and math.isfinite(end)):
        advice = "the value is not a number: fix the scorer and evaluate again"
    elif sign * estimate.value < sign * requirement.threshold:
        advice = "the measured value misses the threshold: more test rows will not help, more training rows may"
    else:
        needed = rows_for() if rows_for else rows_for_width(estimate, requirement.threshold)
        if needed is None or needed > MAX_ADVISED_ROWS:
            advice = f"{estimate.n} examples cannot show this, nor can any number: too close to the threshold"
        else:
            more = round_up_to_two_digits(needed - estimate.n)
            advice = f"{estimate.n} examples cannot show this; label about {more} more"
    return result.model_copy(update={"advice": advice, "more_rows": more})


def rows_for_width(estimate: Estimate, threshold: float) -> int | None:
    """Return about the rows at which an interval whose value meets a threshold ends there: widths shrink as √n."""
    if estimate.value == threshold:
        return None
    end = estimate.low if estimate.value > threshold else estimate.high
    rows = estimate.n * ((estimate.value - end) / (estimate.value - threshold)) ** 2
    return max(estimate.n + 1, math.ceil(rows - 1e-6))


def join_first(names: Sequence[str], limit: int) -> str:
    """Join the first `limit` names with commas and count the others."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*names[:limit], *more])


def _z(confidence: float) -> float:
    return float(scipy_stats.norm.ppf(0.5 + confidence / 2))
