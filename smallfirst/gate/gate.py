"""Gate and Verdict: what a candidate must show before it may go live, and whether it did.

A bar is met when the worse end of the interval reaches it, not when the point estimate does: a
lucky draw of few rows does not go live. The price is rows; a failing line says how many more would
show it. Looking at several candidates on the same rows widens every interval (Bonferroni), since
the best of many looks better than it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import pydantic

from smallfirst.data.quality.leaks import LeakReport
from smallfirst.errors import ConfigError, did_you_mean
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckResult, ConfidenceLevel
from smallfirst.gate.limits import check_leaks, check_maximum, check_saving
from smallfirst.gate.metrics import check_accuracy, check_metric_maximum, check_metric_minimum
from smallfirst.gate.paired import check_not_worse, check_score_not_worse
from smallfirst.gate.per_class import check_each_part, check_named_part
from smallfirst.gate.retention import Retention, check_retention, retention_from_scores
from smallfirst.records import Record

__all__ = [
    "Gate",
    "CheckResult",
    "Retention",
    "Verdict",
    "check",
    "format_verdict",
    "override",
    "retention_from_scores",
    "override_candidate",
    "smallest_passing",
]

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


class Gate(Record):
    """The bars, declared in task.yaml before anything is measured; one left out is not checked."""

    accuracy_at_least: Share | None = None
    """The lower end of the accuracy interval must reach this, in [0, 1]."""
    macro_f1_at_least: Share | None = None
    """The lower end of the macro-F1 interval must reach this, in [0, 1]."""
    measures_at_least: dict[str, Share] = {}
    """The same for figures of the task by name, such as `field_f1` or `token_f1`."""
    measures_at_most: dict[str, NotNegative] = {}
    """The upper end of a figure's interval may be at most this, such as `missing`, `invented` or `mean_cost`."""
    not_worse_than_large_by: Share | None = None
    """Accuracy may be at most this much below the large model's (lower end of the paired difference)."""
    score_not_worse_than_large_by: Share | None = None
    """The mean graded score may be at most this much below the large model's (lower end of the paired difference)."""
    each_part_at_least: Share | None = None
    """Recall of every label or field: its lower end, at a level corrected for the number of parts, must reach this."""
    part_rows: Annotated[int, pydantic.Field(ge=1)] = 20
    """Labels or fields that are there fewer times are named, but not held against `each_part_at_least`."""
    parts_at_least: dict[str, Share] = {}
    """The lower end of the recall of these labels or fields must reach this."""
    p50_ms_at_most: Positive | None = None
    """Median latency of one request at a time, in ms."""
    p95_ms_at_most: Positive | None = None
    """95th percentile latency of one request at a time, in ms."""
    cost_usd_per_1k_at_most: Positive | None = None
    """Cost of 1,000 answers in USD."""
    cheaper_than_large_by: Share | None = None
    """Share of the large model's cost that must be saved: 0.5 means at most half its cost per 1,000 answers."""
    retention_at_least: NotNegative | None = None
    """Share of general ability that must be left after training (lower end); fails if it was not measured."""
    retention_prompts: Path | None = None
    """General questions to measure it with, JSON lines of `prompt`, `answer` and `wrong`; left out: our own 72."""
    leaks_at_most: Share | None = None
    """Share of test rows that may also stand in the training rows; fails if leaks were not looked for."""

    @property
    def has_checks(self) -> bool:
        """True if there is anything to check."""
        no_bars = {"part_rows": Gate().part_rows, "retention_prompts": None}
        return self.model_copy(update=no_bars) != Gate()


class Verdict(Record):
    """The gate's answer for one candidate."""

    candidate: str
    """Who was checked."""
    lines: tuple[CheckResult, ...]
    """One line a bar."""
    passed: bool
    """True if every line passed, or a person signed for it."""
    signed_by: str | None = None
    """Who overrode a failing verdict."""
    because: str | None = None
    """Why."""
    signed_at: str | None = None
    """When, ISO 8601 in UTC."""
    evaluation_fingerprint: str
    """The evaluation it was drawn from."""

    @property
    def missed(self) -> tuple[CheckResult, ...]:
        """The lines that failed; a signature does not take them away."""
        return tuple(line for line in self.lines if not line.passed)

    @pydantic.model_validator(mode="after")
    def _passed_is_earned_or_signed(self) -> Verdict:
        shown = bool(self.lines) and not self.missed
        signed = bool(self.signed_by and self.because and self.signed_at)
        if self.passed != (shown or signed):
            raise ValueError("passed must say whether every line passed or a person signed with a reason and a date")
        return self


def check(
    gate: Gate,
    candidate: Evaluation,
    *,
    large: Evaluation | None,
    comparisons_made: int = 1,
    leaks: LeakReport | None = None,
    retention: Retention | None = None,
) -> Verdict:
    """The verdict on `candidate`: one line for each declared bar.

    `comparisons_made` candidates were looked at on these rows, so intervals are at 1 - 0.05 /
    comparisons_made. `large` may cover a sample of the rows; it is paired on those. Raises
    ConfigError if the gate has no bar.
    """
    if comparisons_made < 1:
        raise ConfigError(f"comparisons_made must be at least 1, got {comparisons_made}")
    if not gate.has_checks:
        raise ConfigError(
            "the gate declares no bar, so anything would pass",
            hint="declare at least one in task.yaml, for example  gate: {accuracy_at_least: 0.9}",
        )
    level = ConfidenceLevel(comparisons_made)
    lines = [
        *_quality(gate, candidate, level),
        *_parts(gate, candidate, level),
        *_paired(gate, candidate, large, level),
    ]
    lines += [*_ceilings(gate, candidate, large)]
    if gate.retention_at_least is not None:
        lines.append(check_retention(gate.retention_at_least, retention, level))
    if gate.leaks_at_most is not None:
        lines.append(check_leaks(gate.leaks_at_most, candidate, leaks, level))
    return Verdict(
        candidate=candidate.candidate,
        lines=tuple(lines),
        passed=all(line.passed for line in lines),
        evaluation_fingerprint=candidate.fingerprint(),
    )


def _quality(gate: Gate, candidate: Evaluation, level: ConfidenceLevel) -> Iterator[CheckResult]:
    if gate.accuracy_at_least is not None:
        yield check_accuracy(gate.accuracy_at_least, candidate, level)
    if gate.macro_f1_at_least is not None:
        yield check_metric_minimum("macro_f1", gate.macro_f1_at_least, candidate, level)
    for name, bar in gate.measures_at_least.items():
        yield check_metric_minimum(name, bar, candidate, level)
    for name, bar in gate.measures_at_most.items():
        yield check_metric_maximum(name, bar, candidate, level)


def _parts(gate: Gate, candidate: Evaluation, level: ConfidenceLevel) -> Iterator[CheckResult]:
    if gate.each_part_at_least is not None:
        yield check_each_part(gate.each_part_at_least, candidate, level, part_rows=gate.part_rows)
    for name, bar in gate.parts_at_least.items():
        yield check_named_part(name, bar, candidate, level)


def _paired(
    gate: Gate, candidate: Evaluation, large: Evaluation | None, level: ConfidenceLevel
) -> Iterator[CheckResult]:
    if gate.not_worse_than_large_by is not None:
        yield check_not_worse(gate.not_worse_than_large_by, candidate, large, level)
    if gate.score_not_worse_than_large_by is not None:
        yield check_score_not_worse(gate.score_not_worse_than_large_by, candidate, large, level)


def _ceilings(gate: Gate, candidate: Evaluation, large: Evaluation | None) -> Iterator[CheckResult]:
    plain = (
        (gate.p50_ms_at_most, candidate.p50_ms, ("p50 latency at most {:g} ms", "{:.1f} ms")),
        (gate.p95_ms_at_most, candidate.p95_ms, ("p95 latency at most {:g} ms", "{:.1f} ms")),
        (
            gate.cost_usd_per_1k_at_most,
            candidate.cost_usd_per_1k,
            ("cost at most ${:g} per 1,000", "${:.4f} per 1,000"),
        ),
    )
    for bar, value, words in plain:
        if bar is not None:
            yield check_maximum(bar, value, len(candidate.probes_ms) or len(candidate.rows), words)
    if gate.cheaper_than_large_by is not None:
        yield check_saving(gate.cheaper_than_large_by, candidate, large)


def smallest_passing(verdicts: Sequence[Verdict]) -> str | None:
    """The first candidate whose verdict passes, in the order given; None if none does.

    The order is the ladder's, smallest first. A verdict that a person signed for counts as passing.
    """
    return next((verdict.candidate for verdict in verdicts if verdict.passed), None)


def override(verdict: Verdict, *, by: str, because: str, at: datetime | None = None) -> Verdict:
    """The failing `verdict` as passed, signed with a name, a reason and the time (`at`, else now); its lines stay.

    The registry and the report show all. Raises ConfigError if name or reason is empty, if `at` has no
    timezone, or if the verdict needs no signature.
    """
    if not by.strip() or not because.strip():
        raise ConfigError("an override needs a name and a reason", hint="say who signs (by) and why (because)")
    if at is not None and at.tzinfo is None:
        raise ConfigError(f"the time of a signature needs a timezone, got {at.isoformat()}")
    if verdict.signed_by:
        raise ConfigError(f"{verdict.candidate} is already signed for by {verdict.signed_by} ({verdict.signed_at})")
    if verdict.passed:
        raise ConfigError(f"{verdict.candidate} already passes its gate: there is nothing to override")
    when = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    return verdict.model_copy(
        update={"passed": True, "signed_by": by.strip(), "because": because.strip(), "signed_at": when}
    )


def override_candidate(
    verdicts: Sequence[Verdict], candidate: str, *, by: str, because: str, at: datetime | None = None
) -> tuple[Verdict, ...]:
    """All `verdicts` of a run, the one on `candidate` overridden.

    Raises ConfigError as that does, or if no verdict is on `candidate`.
    """
    names = [verdict.candidate for verdict in verdicts]
    if candidate not in names:
        raise ConfigError(
            f'no verdict on "{candidate}" to sign{did_you_mean(candidate, names)}',
            hint=f"sign for one of: {', '.join(names)}" if names else "smallfirst gate task.yaml",
        )
    return tuple(
        override(verdict, by=by, because=because, at=at) if verdict.candidate == candidate else verdict
        for verdict in verdicts
    )


def format_verdict(verdict: Verdict) -> str:
    """The verdict as an aligned table for the terminal, with the advice under each line that has some."""
    bars = max((len(line.bar) for line in verdict.lines), default=0)
    rows = [f"{verdict.candidate}: {_in_words(verdict)}"]
    for line in verdict.lines:
        rows.append(f"  {'pass' if line.passed else 'FAIL'}  {line.bar:<{bars}}  {line.measured}")
        if line.advice:
            rows.append(f"        {line.advice}")
    if verdict.signed_by:
        rows.append(f"  signed by {verdict.signed_by} at {verdict.signed_at}: {verdict.because}")
    return "\n".join(rows)


def _in_words(verdict: Verdict) -> str:
    if verdict.signed_by:
        return f"passed by signature, {len(verdict.missed)} of {len(verdict.lines)} bars missed"
    return "pass" if verdict.passed else "FAIL"
