"""How fast a fine-tune is on this machine: that of an earlier run, or of its own first steps, which are thrown away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from smallfirst.models.local.weights import release_memory
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.causal_lm import CausalBackend
from smallfirst.training.config import TrainConfig
from smallfirst.training.estimates import Pace
from smallfirst.training.loop import TrainingLoop

MEASURED_S = 2.0
"""Time for the steps that are timed, after a first one that is not: it is slower."""


def training_pace(tasks: Path, base: tuple[str, Path], config: TrainConfig, rows: Sequence[TokenizedRow]) -> Pace:
    """Return the tokens a second of the latest run below `tasks` with this base (name, folder) and method.

    Without one, those of the first steps, which takes some seconds and the memory of the fine-tune.
    """
    if (earlier := last_tokens_per_s(tasks, base[0], config)) is not None:
        return Pace(earlier, f"an earlier run read {earlier:,.0f} tokens/s")
    measured = _of_first_steps(base[1], config.model_dump_json(), tuple(rows))
    return Pace(measured, f"its first steps read {measured:,.0f} tokens/s")


def last_tokens_per_s(tasks: Path, base: str, config: TrainConfig) -> float | None:
    """Return tokens per second of the latest run below `tasks` with this base and method, or None."""
    for path in sorted(tasks.glob("*/*/run.json"), key=lambda path: path.parent.name, reverse=True):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            if (run["base"], run["config"]["method"]) == (base, config.method) and run["tokens_per_s"] > 0:
                return float(run["tokens_per_s"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version, or damaged: it only does not help
    return None


@cache
def _of_first_steps(folder: Path, config: str, rows: tuple[TokenizedRow, ...]) -> float:
    settings, backend = TrainConfig.model_validate_json(config), CausalBackend()
    model, _ = backend.load(folder, settings)
    backend.begin(model, rows, settings)
    loop = TrainingLoop(backend, model, rows, settings)
    first, rate = (0, 0.0), 0.0
    for step in loop.steps():
        rate = (loop.tokens - first[0]) / (loop.busy_s - first[1])
        if step.step == 1:
            first = loop.tokens, loop.busy_s
        elif loop.busy_s - first[1] >= MEASURED_S:
            break
    del model, loop
    release_memory()
    return rate
