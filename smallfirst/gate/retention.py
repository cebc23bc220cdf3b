"""Retention: how much of its general ability a model keeps when it is fine-tuned, and the bar on it.

The same general prompts are scored before and after training, and the mean score after is divided by the mean before;
both means move together when other prompts are drawn, so the interval is a bootstrap over prompts (Efron 1979). Where
answers are chosen among given ones, guessing must count as nothing, or a model that forgot everything would keep what
guessing gives; the price is a wider interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smallfirst.errors import ConfigError
from smallfirst.evaluation.ability_probe import Probe, ProbeResult
from smallfirst.gate.check_result import CheckResult, ConfidenceLevel, check_minimum, not_measured, rows_for_width
from smallfirst.gate.metrics import cap_lower_bound
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, bootstrap, paired_difference


class RetentionByKind(Record):
    """General prompts of one kind."""

    kind: str
    """What is asked for."""
    n: int
    """Prompts of the kind."""
    n_before: int
    """Right answers before training."""
    n_after: int
    """Right answers after it."""


class Retention(Record):
    """What is left of general ability after training."""

    kept: Estimate | None
    """Mean score after over mean score before, on the same prompts; interval at 95 %. Above 1 if it grew. None if the
    untouched model was not shown to be better than guessing, so that there is nothing to keep."""
    before: float
    """Mean score of the untouched model; for answers chosen among given ones 0 is guessing, 1 all right."""
    after: float
    """Mean score of the trained model."""
    prompts: str = ""
    """Which general prompts, for the reader."""
    right_before: Estimate | None = None
    """Share of right answers of the untouched model, guesses included; None if scores were given instead of answers."""
    right_after: Estimate | None = None
    """The same of the trained model."""
    difference: Estimate | None = None
    """Share of right answers after minus before, paired on the same prompts."""
    parts: tuple[RetentionByKind, ...] = ()
    """The same by kind of prompt."""


def retention_from_scores(before: Sequence[float], after: Sequence[float], *, prompts: str = "") -> Retention:
    """The Retention from the scores of the same prompts before and after training.

    Raises ConfigError if the lengths differ, or if nothing was scored above 0 before.
    """
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if old.shape != new.shape:
        raise ConfigError(
            f"retention needs the same prompts before and after, got {old.size} and {new.size} scores",
            hint="score both models on one list of general prompts",
        )
    if not old.sum() > 0:
        raise ConfigError(
            f"the model scored 0 on all {old.size} general prompts before training, so no share of it can be kept",
            hint="choose prompts that the untouched model can answer",
        )

    def ratio(at: np.ndarray) -> float:
        there = float(old[at].sum())
        return float(new[at].sum()) / there if there > 0 else 0.0  # a draw of failures alone shows nothing kept

    return Retention(
        kept=bootstrap(ratio, old.size), before=float(old.mean()), after=float(new.mean()), prompts=prompts
    )


def retention_from_probes(probe: Probe, before: ProbeResult, after: ProbeResult) -> Retention:
    """The Retention from a probe's results before and after training, corrected for guessing (Frary 1988).

    A right answer scores 1, a wrong one -g / (1 - g), g being how often guessing is right: so guessing scores 0 on
    average, whatever the number of answers. Raises ConfigError if a result is not of this probe.
    """
    if {before.probe_fingerprint, after.probe_fingerprint} != {probe.fingerprint()}:
        raise ConfigError("retention needs the same prompts before and after", hint="smallfirst evaluate task.yaml")
    guesses = [question.guess for question in probe.questions]
    old, new = _corrected(before, guesses), _corrected(after, guesses)
    kept = None
    if before.accuracy.low > float(np.mean(guesses)):
        kept = retention_from_scores(old, new).kept
    return Retention(
        kept=kept,
        before=float(np.mean(old)),
        after=float(np.mean(new)),
        prompts=probe.name,
        right_before=before.accuracy,
        right_after=after.accuracy,
        difference=paired_difference(after.right, before.right),
        parts=_parts(probe, before, after),
    )


def _corrected(result: ProbeResult, guesses: Sequence[float]) -> list[float]:
    return [1.0 if right else -g / (1 - g) for right, g in zip(result.right, guesses, strict=True)]


def _parts(probe: Probe, before: ProbeResult, after: ProbeResult) -> tuple[RetentionByKind, ...]:
    found = []
    for kind in dict.fromkeys(question.kind for question in probe.questions):
        at = [i for i, question in enumerate(probe.questions) if question.kind == kind]
        n_before, n_after = (sum(result.right[i] for i in at) for result in (before, after))
        found.append(RetentionByKind(kind=kind, n=len(at), n_before=n_before, n_after=n_after))
    return tuple(found) if len(found) > 1 else ()


def check_retention(bar: float, retention: Retention | None, level: ConfidenceLevel) -> CheckResult:
    """The line of the retention bar; it fails when retention was not measured."""
    text = f"general ability kept at least {bar:.3f}"
    if retention is None:
        advice = "smallfirst evaluate task.yaml   measures it for the fine-tuned model; a linear one has none to keep"
        return not_measured(text, "not measured", advice)
    if retention.kept is None:
        measured = f"the untouched model is no better than guessing: {retention.before:.3f} before"
        return not_measured(text, measured, "name prompts that it can answer (gate.retention_prompts)")
    found = cap_lower_bound(level.widened(retention.kept), level)
    measured = f"{level.show(found)}, {retention.before:.3f} before and {retention.after:.3f} after"
    line = check_minimum(bar, found, (text, measured), lambda: rows_for_width(found, bar))
    if line.passed:
        return line
    forgot = "more than that was forgotten: method lora, fewer epochs or a lower learning_rate forget less"
    advice = forgot if found.value < bar else f"{line.advice} (gate.retention_prompts)"
    return line.model_copy(update={"advice": advice})
