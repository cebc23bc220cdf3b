"""Retention: how much of its general ability a model keeps when it is fine-tuned, and the bar on it.

The same general prompts are scored before and after training, and the mean score after is divided by the mean before;
both means move together when other prompts are drawn, so the interval is a bootstrap over prompts (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smallfirst.bars.line import GateLine, Level, at_least, not_measured, rows_by_width
from smallfirst.bars.quality import no_surer_than_its_rows
from smallfirst.errors import ConfigError
from smallfirst.records import Record
from smallfirst.stats import Estimate, bootstrap


class Retention(Record):
    """What is left of general ability after training."""

    kept: Estimate
    """Mean score after over mean score before, on the same prompts; interval at 95 %. Above 1 if it grew."""
    before: float
    """Mean score of the untouched model."""
    after: float
    """Mean score of the trained model."""
    prompts: str = ""
    """Which general prompts, for the reader."""


def retention_of(before: Sequence[float], after: Sequence[float], *, prompts: str = "") -> Retention:
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


def retained(bar: float, retention: Retention | None, level: Level) -> GateLine:
    """The line of the retention bar; it fails when retention was not measured."""
    text = f"general ability kept at least {bar:.3f}"
    if retention is None:
        return not_measured(text, "not measured", "score general prompts before and after training")
    found = no_surer_than_its_rows(level.widened(retention.kept), level)
    measured = f"{level.show(found)}, {retention.before:.3f} before and {retention.after:.3f} after"
    return at_least(bar, found, (text, measured), lambda: rows_by_width(found, bar))
