"""Retention: how much of its general ability a model keeps when it is fine-tuned.

Mean score after over before on the same questions, corrected for guessing; bootstrap over questions (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smallfirst.errors import ConfigError
from smallfirst.evaluation.ability_probe import Probe, ProbeResult
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, bootstrap, paired_difference


class RetentionByKind(Record):
    """Right answers to general prompts of one kind."""

    kind: str
    n: int
    n_before: int
    n_after: int


class Retention(Record):
    """General ability before and after training."""

    kept: Estimate | None
    """Mean score after over mean score before, on the same prompts; interval at 95 %. Above 1 if it grew. None if the
    base model was not shown to be better than guessing, so that there is nothing to keep."""
    before: float
    """Mean score of the base model; 0 is guessing, 1 all right."""
    after: float
    prompts: str
    right_before: Estimate
    """Share of right answers of the base model, guesses included, Wilson interval."""
    right_after: Estimate
    """Share of right answers of the trained model, guesses included, Wilson interval."""
    difference: Estimate
    """Share of right answers after minus before, paired on the same prompts."""
    parts: tuple[RetentionByKind, ...] = ()
    """Right answers by kind of prompt; empty if there is one kind only."""


def retention_from_probes(probe: Probe, before: ProbeResult, after: ProbeResult) -> Retention:
    """Return the Retention from a probe's results before and after training, corrected for guessing (Frary 1988).

    A right answer scores 1, a wrong one -g / (1 - g), with g the accuracy of guessing: so guessing scores 0 on average,
    however many answers there are. Raises ConfigError if a result is not of this probe.
    """
    if {before.probe_fingerprint, after.probe_fingerprint} != {probe.fingerprint()}:
        raise ConfigError("retention needs the same prompts before and after", hint="smallfirst evaluate task.yaml")
    chances = [question.chance for question in probe.questions]
    old, new = _corrected(before, chances), _corrected(after, chances)
    better_than_guessing = before.accuracy.low > float(np.mean(chances))
    return Retention(
        kept=_kept_share(old, new) if better_than_guessing else None,
        before=float(old.mean()),
        after=float(new.mean()),
        prompts=probe.name,
        right_before=before.accuracy,
        right_after=after.accuracy,
        difference=paired_difference(after.right, before.right),
        parts=_by_kind(probe, before, after),
    )


def _corrected(result: ProbeResult, chances: Sequence[float]) -> np.ndarray:
    return np.array([1.0 if right else -g / (1 - g) for right, g in zip(result.right, chances, strict=True)])


def _kept_share(before: np.ndarray, after: np.ndarray) -> Estimate:
    def ratio(rows: np.ndarray) -> float:
        total = float(before[rows].sum())
        return float(after[rows].sum()) / total if total > 0 else 0.0  # a draw of failures alone shows nothing kept

    return bootstrap(ratio, before.size)


def _by_kind(probe: Probe, before: ProbeResult, after: ProbeResult) -> tuple[RetentionByKind, ...]:
    found = []
    for kind in dict.fromkeys(question.kind for question in probe.questions):
        at = [i for i, question in enumerate(probe.questions) if question.kind == kind]
        n_before, n_after = (sum(result.right[i] for i in at) for result in (before, after))
        found.append(RetentionByKind(kind=kind, n=len(at), n_before=n_before, n_after=n_after))
    return tuple(found) if len(found) > 1 else ()
