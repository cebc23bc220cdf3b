"""One check of the gate: its result, its confidence level, and whether more rows are likely to change it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from scipy import special

from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, wilson
from smallfirst.stats.sample_size import chance_of_interval, chance_of_share, fewest_rows


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


class ConfidenceLevel:
    """The level 1 - 0.05 / (comparisons · parts) of intervals that are compared together (Bonferroni)."""

    def __init__(self, comparisons: float, parts: int = 1) -> None:
        self.comparisons, self.parts = comparisons, max(1, parts)
        self.confidence = 1 - 0.05 / (comparisons * self.parts)
        self.z = float(special.ndtri(0.5 + self.confidence / 2))

    @property
    def note(self) -> str:
        """The level and its reason in brackets; empty at 95 %."""
        parts = [f"{self.parts} parts"] if self.parts > 1 else []
        reason = " and ".join([*(["plans"] if self.comparisons > 1 else []), *parts])
        return f" ({100 * self.confidence:.4g} % interval: {reason} share the level)" if reason else ""

    def format(self, estimate: Estimate, suffix: str = "") -> str:
        return f"{estimate} n={estimate.n}{suffix}{self.note}"

    def widen(self, stored: Estimate) -> Estimate:
        """Widen a 95 % interval, as an Evaluation stores it, to this level, each side by the ratio of the quantiles."""
        by = self.z / ConfidenceLevel(1).z
        low, high = stored.value - by * (stored.value - stored.low), stored.value + by * (stored.high - stored.value)
        return stored.model_copy(update={"low": max(low, 0.0) if stored.low >= 0 else low, "high": high})


class Requirement(NamedTuple):
    """A threshold that the gate declares."""

    name: str
    """Key of the threshold in task.yaml."""
    threshold: float
    """Of a name that ends in `_at_most` the upper end of an interval must not exceed it."""
    text: str

    def result(
        self, measured: str, advice: str = "", *, passed: bool = False, estimate: Estimate | None = None
    ) -> CheckResult:
        """Return what was found. An interval without a finite end, which JSON cannot hold, is left out."""
        return CheckResult(
            name=self.name,
            threshold=self.threshold,
            requirement=self.text,
            measured=measured,
            passed=passed,
            advice=advice,
            estimate=estimate if estimate and math.isfinite(estimate.high - estimate.low) else None,
        )

    def check(
        self,
        found: Estimate,
        level: ConfidenceLevel,
        measured: str = "",
        *,
        chance: Callable[[int], float] | None = None,
        instead: str = "",
    ) -> CheckResult:
        """Return whether the worse end of an interval at `level` reaches the threshold; `measured` says it in words.

        `chance(n)` is how likely n rows more are to show it; left out, as the interval's width lets expect. `instead`
        says what would where they are not likely to.
        """
        at_most = self.name.endswith("_at_most")
        sign, end = (-1, found.high) if at_most else (1, found.low)
        passed = found.n > 0 and sign * end >= sign * self.threshold
        result = self.result(measured or level.format(found), passed=passed, estimate=found)
        if passed:
            return result
        if not found.n:
            return result.model_copy(update={"advice": "no row was measured"})
        if not math.isfinite(found.value + end):
            return result.model_copy(update={"advice": "the value is not a number: fix the scorer and evaluate again"})
        by_width = partial(chance_of_interval, found, self.threshold, z=level.z, at_most=at_most)
        needed = fewest_rows(chance or by_width)
        advice, more = "so few rows cannot tell: more are needed", needed.n_more if not needed.unlikely else None
        if needed.unlikely:
            advice = f"more test rows are unlikely to show it ({100 * needed.chance:.0f} %)"
            advice = instead or f"{advice}: more training rows or a better model may"
        return result.model_copy(update={"advice": advice, "more_rows": more, "chance": needed.chance})

    def check_share(self, n_right: int, n: int, level: ConfidenceLevel, *, n_rows: int | None = None) -> CheckResult:
        """Return whether the lower end of Wilson's interval reaches it; `n` of `n_rows` rows count, or all."""
        chance = partial(chance_to_show, n_right, n, self.threshold, level, n if n_rows is None else n_rows)
        return self.check(wilson(n_right, n, confidence=level.confidence), level, chance=chance)


def chance_to_show(n_right: int, n: int, least: float, level: ConfidenceLevel, n_rows: int, n_more: int) -> float:
    """Return how likely `n_more` rows more, of which as many count as `n` of `n_rows` now, are to show a share."""
    return chance_of_share(n_right, n, n_more * n // max(1, n_rows), least, confidence=level.confidence)
