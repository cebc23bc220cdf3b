"""Time the steps of a transformers Trainer, for the peers of speed.py. Imports only transformers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

WARM_UP, STEPS = (1, 3) if os.environ.get("OMP_NUM_THREADS") == "1" else (2, 6)
now = time.process_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
"""With one thread processor time, which other work on the machine changes least."""


class Clock(TrainerCallback):
    """When each step began and ended."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.ended: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Notes the time."""
        self.began.append(now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Notes the time."""
        self.ended.append(now())

    def show(self, batches: Sequence[tuple[int, int]]) -> None:
        """Print the figures that speed.py reads. `batches` are (real tokens, rows) in the order of the steps."""
        counted = batches[WARM_UP : WARM_UP + STEPS]
        seconds = sum(b - a for a, b in zip(self.began[WARM_UP:], self.ended[WARM_UP:], strict=True))
        tokens, rows = (sum(numbers) for numbers in zip(*counted, strict=True))
        print(json.dumps({"tokens": tokens, "rows": rows, "seconds": seconds}))


def size(rows: Sequence[Any]) -> tuple[int, int]:
    """Return the real input tokens (a row's last is only a target) and the rows of a batch before padding."""
    return sum(len(row["input_ids"]) - 1 for row in rows), len(rows)
