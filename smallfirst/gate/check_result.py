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
from smallfirst.evaluation.retention import Retention
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
    retention: Retention | None = None
    """General ability left after training; None if not measured."""
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


def check_minimum(
    requirement: Requirement, estimate: Estimate, measured: str, rows_for: Callable[[], int | None]
) -> CheckResult:
    """Return the result of a minimum, met by the interval's lower end; `rows_for()` is how many rows would show it."""
    minimum = requirement.threshold
    passed = estimate.n > 0 and estimate.low >= minimum
    advice, more_rows = ("", None) if passed else advice_for(estimate, minimum, rows_for)
    result = check_value(requirement, passed=passed, measured=measured, advice=advice)
    return result.model_copy(update={"estimate": estimate, "more_rows": more_rows})


def check_maximum(
    requirement: Requirement, estimate: Estimate, measured: str, rows_for: Callable[[Estimate, float], int | None]
) -> CheckResult:
    """Return the result of a maximum, met by the interval's upper end: a minimum of the negated value.

    `rows_for` takes the negated estimate and maximum.
    """
    negated = Estimate(value=-estimate.value, low=-estimate.high, high=-estimate.low, n=estimate.n)
    minimum = -requirement.threshold
    result = check_minimum(
        requirement._replace(threshold=minimum), negated, measured, lambda: rows_for(negated, minimum)
    )
    return result.model_copy(update={"estimate": estimate, "threshold": requirement.threshold})


def advice_for(estimate: Estimate, minimum: float, rows_for: Callable[[], int | None]) -> tuple[str, int | None]:
    """Return what to do about an estimate that does not reach `minimum`, and about how many more rows would do."""
    if estimate.n == 0:
        return "no row was measured", None
    if not (math.isfinite(estimate.value) and math.isfinite(estimate.low)):
        return "the value is not a number: fix the scorer and evaluate again", None
    if estimate.value < minimum:
        return (
            "the measured value misses the threshold: more test rows will not help, more training rows may",
            None,
        )
    needed = rows_for()
    if needed is None or needed > MAX_ADVISED_ROWS:
        return f"{estimate.n} examples cannot show this, nor can any number: too close to the threshold", None
    more = round_up_to_two_digits(needed - estimate.n)
    return f"{estimate.n} examples cannot show this; label about {more} more", more


def rows_for_width(estimate: Estimate, minimum: float) -> int | None:
    """Return about the rows at which the lower end is at `minimum`: a width shrinks with the root of n."""
    if estimate.value <= minimum:
        return None
    rows = estimate.n * ((estimate.value - estimate.low) / (estimate.value - minimum)) ** 2
    return max(estimate.n + 1, math.ceil(rows - 1e-6))


def join_first(names: Sequence[str], limit: int) -> str:
    """Join the first `limit` names with commas and count the others."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*names[:limit], *more])


def _z(confidence: float) -> float:
    return float(scipy_stats.norm.ppf(0.5 + confidence / 2))
