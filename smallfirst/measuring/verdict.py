"""Verdict: the gate's answer for one candidate, check by check, and how a person overrides it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import pydantic

from smallfirst.base.errors import ConfigError, did_you_mean
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
    """True if every check passed, or a person signed an override."""
    signed_by: str | None = None
    """Who overrode a failing verdict."""
    because: str | None = None
    signed_at: str | None = None
    """When it was overridden, ISO 8601 in UTC."""
    evaluation_fingerprint: str

    @property
    def failed_checks(self) -> tuple[CheckResult, ...]:
        """The checks that failed; an override does not remove them."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def furthest_off(self) -> CheckResult | None:
        """The failed check that misses its threshold by most; None if all passed."""
        return max(self.failed_checks, key=lambda check: check.shortfall, default=None)

    @pydantic.model_validator(mode="after")
    def _passed_or_overridden(self) -> Verdict:
        all_passed = bool(self.checks) and not self.failed_checks
        if self.passed != (all_passed or bool(self.signed_by and self.because and self.signed_at)):
            raise ValueError(
                "passed must be true exactly if every check passed, or a name, a reason and a date are given"
            )
        return self


def nearest_to_passing(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict with the fewest failed checks; of equals the one that misses its thresholds by least."""
    return min(verdicts, key=lambda v: (len(v.failed_checks), sum(check.shortfall for check in v.failed_checks)))


def override(verdicts: Sequence[Verdict], candidate: str, *, by: str, because: str) -> tuple[Verdict, ...]:
    """Return all `verdicts`, the failing one on `candidate` as passed and signed now.

    Raise ConfigError without a verdict on it, a name or a reason, or if it passed or was signed already.
    """
    by_name = {verdict.candidate: verdict for verdict in verdicts}
    if (found := by_name.get(candidate)) is None:
        raise ConfigError(
            f'there is no verdict on "{candidate}" to override{did_you_mean(candidate, by_name)}',
            hint=f"override one of: {', '.join(by_name)}" if by_name else "smallfirst gate task.yaml",
        )
    if not by.strip() or not because.strip():
        raise ConfigError("an override needs a name and a reason", hint="give both: --by NAME --because REASON")
    if found.signed_by:
        raise ConfigError(f"{candidate} was already overridden by {found.signed_by} ({found.signed_at})")
    if found.passed:
        raise ConfigError(
            f"{candidate} already passes its gate: there is nothing to override",
            hint=f"smallfirst promote task.yaml --candidate {candidate}",
        )
    update = {"passed": True, "signed_by": by.strip(), "because": because.strip()}
    update["signed_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    return tuple(one.model_copy(update=update) if one is found else one for one in verdicts)


def format_verdict(verdict: Verdict) -> str:
    """Format the verdict as an aligned table for the terminal, with the advice under each check."""
    width = max((len(check.requirement) for check in verdict.checks), default=0)
    outcome = "pass" if verdict.passed else "FAIL"
    if verdict.signed_by:
        outcome = f"overridden, {len(verdict.failed_checks)} of {len(verdict.checks)} checks failed"
    lines = [f"{verdict.candidate}{' first' if verdict.plan == 'small first' else ''}: {outcome}"]
    for check in verdict.checks:
        lines.append(f"  {'pass' if check.passed else 'FAIL'}  {check.requirement:<{width}}  {check.measured}")
        lines += [f"        {check.advice}"] if check.advice else []
    if verdict.signed_by:
        lines.append(f"  overridden by {verdict.signed_by} at {verdict.signed_at}: {verdict.because}")
    return "\n".join(lines)
