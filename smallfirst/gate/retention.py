"""The check of retention: how much general ability is left after fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    NonNegative,
    Requirement,
    check_minimum,
    not_measured,
    rows_for_width,
)
from smallfirst.gate.metrics import cap_lower_bound
from smallfirst.records import Record


class RetentionThresholds(Record):
    """The threshold for retention, and what to measure it with."""

    retention_at_least: NonNegative | None = None
    """Share of general ability that must be left after training (lower end); fails if it was not measured."""
    retention_prompts: Path | None = None
    """General questions to measure it with, JSON lines of `prompt`, `answer` and `wrong`; left out: the built-in 72."""


def check_retention(gate: RetentionThresholds, inputs: CheckInputs) -> Iterator[CheckResult]:
    """Yield the result for the kept share of general ability, if the threshold is declared."""
    minimum, retention, level = gate.retention_at_least, inputs.retention, inputs.level
    if minimum is None:
        return
    requirement = Requirement("retention_at_least", minimum, f"general ability kept at least {minimum:.3f}")
    if retention is None:
        advice = "smallfirst evaluate task.yaml   measures it for the fine-tuned model; a linear one has none to keep"
        yield not_measured(requirement, "not measured", advice)
    elif retention.kept is None:
        measured = f"the base model is no better than guessing: {retention.before:.3f} before"
        yield not_measured(requirement, measured, "name prompts that it can answer (gate.retention_prompts)")
    else:
        kept = cap_lower_bound(level.widen(retention.kept), level)
        measured = f"{level.format(kept)}, {retention.before:.3f} before and {retention.after:.3f} after"
        result = check_minimum(requirement, kept, measured, lambda: rows_for_width(kept, minimum))
        if not result.passed:
            forgot = "more than that was forgotten: method lora, fewer epochs or a lower learning_rate forget less"
            advice = forgot if kept.value < minimum else f"{result.advice} (gate.retention_prompts)"
            result = result.model_copy(update={"advice": advice})
        yield result
