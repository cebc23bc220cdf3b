"""One check of the gate: its result, its confidence level, and whether more rows are likely to change it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import pydantic
from scipy import stats as scipy_stats

from smallfirst.data.quality.leaks import LeakReport
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, wilson
from smallfirst.stats.sample_size import chance_of_interval, chance_of_share, fewest_rows

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
    """Whether more labels or a better model would help; how many labels is said for all checks together
    (`Outcome.labels_needed`). For a check that passed: what it could not cover."""
    estimate: Estimate | None = None
    """The value with the interval that was compared; None for a plain number and if nothing was measured."""
    more_rows: int | None = None
    """The fewest more test rows that are likely to show it; None if it passed, or if no number is."""
    chance: float | None = None
    """How likely as many are to show it, or the most that would be asked for, in [0, 1]; None if it passed."""

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


def check_value(
    requirement: Requirement, *, passed: bool, measured: str, advice: str = "", estimate: Estimate | None = None
) -> CheckResult:
    """Return the result with what was found; the advice is for one that failed."""
    return CheckResult(
        name=requirement.name,
        threshold=requirement.threshold,
        requirement=requirement.text,
        measured=measured,
        passed=passed,
        advice=advice,
        estimate=estimate,
    )


def check_interval(
    requirement: Requirement,
    estimate: Estimate,
    measured: str,
    level: ConfidenceLevel,
    chance: Callable[[int], float] | None = None,
    instead: str = "",
) -> CheckResult:
    """Return the result of a threshold that the worse end of an interval at `level` must reach.

    `chance(n)` is how likely n rows more are to show it; left out, as the interval's width lets expect. `instead` says
    what would where they are not likely to. An interval without a finite end, which JSON cannot hold, is left out.
    """
    threshold, at_most = requirement.threshold, requirement.at_most
    sign, end = (-1, estimate.high) if at_most else (1, estimate.low)
    passed, advice = estimate.n > 0 and sign * end >= sign * threshold, ""
    if estimate.n == 0:
        advice = "no row was measured"
    elif not (passed or (math.isfinite(estimate.value) and math.isfinite(end))):
        advice = "the value is not a number: fix the scorer and evaluate again"
    kept = estimate if math.isfinite(estimate.low) and math.isfinite(estimate.high) else None
    result = check_value(requirement, passed=passed, measured=measured, advice=advice, estimate=kept)
    if passed or advice:
        return result
    by_width = partial(chance_of_interval, estimate, threshold, z=level.z, at_most=at_most)
    return with_rows_needed(result, chance or by_width, instead=instead)


def check_share(
    requirement: Requirement, n_right: int, n: int, level: ConfidenceLevel, *, n_rows: int | None = None
) -> CheckResult:
    """Check the lower end of Wilson's interval; of `n_rows` rows, all if left out, `n` are counted."""
    found = wilson(n_right, n, confidence=level.confidence)
    chance = share_chance(n_right, n, requirement.threshold, level, n_rows=n_rows)
    return check_interval(requirement, found, level.format(found), level, chance)


def share_chance(
    n_right: int, n: int, minimum: float, level: ConfidenceLevel, *, n_rows: int | None = None
) -> Callable[[int], float]:
    """Return how likely so many rows more, of which as many count as now, are to show a share."""

    def chance(n_more: int) -> float:
        counted = n_more if n_rows is None else n_more * n // max(1, n_rows)
        return chance_of_share(n_right, n, counted, minimum, confidence=level.confidence)

    return chance


def with_rows_needed(failed: CheckResult, chance: Callable[[int], float], *, instead: str = "") -> CheckResult:
    """Return the result with the rows that are likely to show it; `chance(n)` is how likely n test rows more are."""
    needed = fewest_rows(chance)
    if needed.unlikely:
        advice = f"more test rows are unlikely to show it ({100 * needed.chance:.0f} %)"
        advice, more = instead or f"{advice}: more training rows or a better model may", None
    else:
        advice, more = "so few rows cannot tell: more are needed", needed.n_more
    return failed.model_copy(update={"advice": failed.advice or advice, "more_rows": more, "chance": needed.chance})


def join_first(names: Sequence[str], limit: int) -> str:
    """Join the first `limit` names with commas and count the others."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*names[:limit], *more])


def _z(confidence: float) -> float:
    return float(scipy_stats.norm.ppf(0.5 + confidence / 2))
