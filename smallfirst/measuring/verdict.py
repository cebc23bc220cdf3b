"""Verdict: the gate's answer for one candidate, check by check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pydantic

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate


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
    passed: bool = False
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


class Verdict(Record):
    """The gate's answer for one candidate."""

    candidate: str
    plan: Literal["small alone", "small first"] = "small alone"
    """What was judged: the candidate by itself on every request, or in front of the large model, with a certificate."""
    checks: tuple[CheckResult, ...]
    """One result for each declared threshold."""
    passed: bool
    """True if every check passed."""
    evaluation_fingerprint: str

    @property
    def failed_checks(self) -> tuple[CheckResult, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def furthest_off(self) -> CheckResult | None:
        """The failed check that misses its threshold by most; None if all passed."""
        return max(self.failed_checks, key=lambda check: check.shortfall, default=None)

    @pydantic.model_validator(mode="after")
    def _passed_by_its_checks(self) -> Verdict:
        if self.passed != (bool(self.checks) and not self.failed_checks):
            raise ValueError("passed must be true exactly if every check passed")
        return self


def nearest_to_passing(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict with the fewest failed checks; of equals the one that misses its thresholds by least."""
    return min(verdicts, key=lambda v: (len(v.failed_checks), sum(check.shortfall for check in v.failed_checks)))


def format_verdict(verdict: Verdict) -> str:
    """Format the verdict as an aligned table for the terminal, with the advice under each check."""
    width = max((len(check.requirement) for check in verdict.checks), default=0)
    outcome = "pass" if verdict.passed else "FAIL"
    lines = [f"{verdict.candidate}{' first' if verdict.plan == 'small first' else ''}: {outcome}"]
    for check in verdict.checks:
        lines.append(f"  {'pass' if check.passed else 'FAIL'}  {check.requirement:<{width}}  {check.measured}")
        lines += [f"        {check.advice}"] if check.advice else []
    return "\n".join(lines)
