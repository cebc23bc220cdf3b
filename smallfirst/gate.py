"""Gate and Verdict: what a candidate must show before it may go live, and whether it did.

A bar is met when the lower end of the interval reaches it, not when the point estimate does: a
lucky draw of few rows does not go live. The price is rows; a failing line says how many more would
show it. Looking at several candidates on the same rows widens every interval (Bonferroni), since
the best of many looks better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic

from smallfirst.bars import GateLine, Level, accuracy, at_most, macro_f1, not_worse
from smallfirst.errors import ConfigError
from smallfirst.evaluation.evaluation import Evaluation
from smallfirst.records import Record

__all__ = ["Gate", "GateLine", "Verdict", "check", "explain", "overridden", "smallest_passing"]

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


class Gate(Record):
    """The bars, declared in task.yaml before anything is measured; one left out is not checked."""

    accuracy_at_least: Share | None = None
    """The lower end of the accuracy interval must reach this, in [0, 1]."""
    macro_f1_at_least: Share | None = None
    """The lower end of the macro-F1 interval must reach this, in [0, 1]."""
    not_worse_than_large_by: Share | None = None
    """Accuracy may be at most this much below the large model's (lower end of the difference)."""
    p95_ms_at_most: Positive | None = None
    """95th percentile latency of one request at a time, in ms."""
    cost_usd_per_1k_at_most: Positive | None = None
    """Cost of 1,000 answers in USD."""


class Verdict(Record):
    """The gate's answer for one candidate."""

    candidate: str
    """Who was checked."""
    lines: tuple[GateLine, ...]
    """One line a bar."""
    passed: bool
    """True if every line passed, or a person signed for it."""
    signed_by: str | None = None
    """Who overrode a failing verdict."""
    because: str | None = None
    """Why."""
    evaluation_fingerprint: str
    """The evaluation it was drawn from."""

    @pydantic.model_validator(mode="after")
    def _passed_is_earned_or_signed(self) -> Verdict:
        shown = bool(self.lines) and all(line.passed for line in self.lines)
        signed = bool(self.signed_by and self.because)
        if self.passed != (shown or signed):
            raise ValueError("passed must say whether every line passed or a person signed with a reason")
        return self


def check(gate: Gate, candidate: Evaluation, *, large: Evaluation | None, comparisons_made: int = 1) -> Verdict:
    """The verdict on `candidate`: one line for each declared bar.

    `comparisons_made` candidates were looked at on these rows, so intervals are at 1 - 0.05 /
    comparisons_made. `large` may cover a sample of the rows; it is paired on those. Raises
    ConfigError if the gate has no bar.
    """
    if comparisons_made < 1:
        raise ConfigError(f"comparisons_made must be at least 1, got {comparisons_made}")
    if gate == Gate():
        raise ConfigError(
            "the gate declares no bar, so anything would pass",
            hint="declare at least one in task.yaml, for example  gate: {accuracy_at_least: 0.9}",
        )
    level, n = Level(comparisons_made), len(candidate.rows)
    lines = []
    if gate.accuracy_at_least is not None:
        lines.append(accuracy(gate.accuracy_at_least, candidate, level))
    if gate.macro_f1_at_least is not None:
        lines.append(macro_f1(gate.macro_f1_at_least, candidate, level))
    if gate.not_worse_than_large_by is not None:
        lines.append(not_worse(gate.not_worse_than_large_by, candidate, large, level))
    if gate.p95_ms_at_most is not None:
        words = ("p95 latency at most {:g} ms", "{:.1f} ms")
        lines.append(at_most(gate.p95_ms_at_most, candidate.p95_ms, n, words))
    if gate.cost_usd_per_1k_at_most is not None:
        words = ("cost at most ${:g} per 1,000", "${:.4f} per 1,000")
        lines.append(at_most(gate.cost_usd_per_1k_at_most, candidate.cost_usd_per_1k, n, words))
    return Verdict(
        candidate=candidate.candidate,
        lines=tuple(lines),
        passed=all(line.passed for line in lines),
        evaluation_fingerprint=candidate.fingerprint(),
    )


def smallest_passing(verdicts: Sequence[Verdict]) -> str | None:
    """The first candidate whose verdict passes, in the order given; None if none does.

    The order is the ladder's, smallest first. A verdict that a person signed for counts as passing.
    """
    return next((verdict.candidate for verdict in verdicts if verdict.passed), None)


def overridden(verdict: Verdict, *, by: str, because: str) -> Verdict:
    """The failing `verdict` as passed, signed with a name and a reason.

    The registry and the report show both. Raises ConfigError if either is empty or if the verdict
    needs no signature.
    """
    if not by.strip() or not because.strip():
        raise ConfigError("an override needs a name and a reason", hint="say who signs (by) and why (because)")
    if verdict.passed:
        raise ConfigError(f"{verdict.candidate} already passes its gate: there is nothing to override")
    return verdict.model_copy(update={"passed": True, "signed_by": by.strip(), "because": because.strip()})


def explain(verdict: Verdict) -> str:
    """The verdict as an aligned table for the terminal, with the advice under each failing line."""
    bars = max((len(line.bar) for line in verdict.lines), default=0)
    rows = [f"{verdict.candidate}: {'pass' if verdict.passed else 'FAIL'}"]
    for line in verdict.lines:
        rows.append(f"  {'pass' if line.passed else 'FAIL'}  {line.bar:<{bars}}  {line.measured}")
        if line.advice:
            rows.append(f"        {line.advice}")
    if verdict.signed_by:
        rows.append(f"  signed by {verdict.signed_by}: {verdict.because}")
    return "\n".join(rows)
