"""TRL's side of benchmarks/training/speed.py, run by the interpreter of an environment that has trl.

    python -m benchmarks.peers.train_trl "defaults" BASE ROWS.jsonl

`defaults` changes nothing; `bf16 grouped` is the best setting we found: bf16 weights and optimizer state (no fp32
masters), 32 rows a batch, rows of similar length together. `lora` is the same over bf16 weights with adapters of rank 16
on all linear layers by peft, about 1,024 tokens a batch and no checkpointing.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

WARM_UP, STEPS = (1, 3) if os.environ.get("OMP_NUM_THREADS") == "1" else (2, 6)
now = time.process_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
"""With one thread processor time, which other work on the machine changes least."""


class Clock(TrainerCallback):
    """When each step began and ended."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.ended: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began.append(now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
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


class Counting:
    """Collate, and count real tokens and rows of each batch."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.seen: list[tuple[int, int]] = []

    def __call__(self, rows: list[Any]) -> Any:
        self.seen.append(size(rows))
        return self.collator(rows)


def settings(how: str) -> tuple[dict[str, Any], torch.dtype]:
    if how == "defaults":
        return {}, torch.float32
    old = "group_by_length" in inspect.signature(SFTConfig.__init__).parameters
    grouped = {"group_by_length": True} if old else {"train_sampling_strategy": "group_by_length"}
    if how == "lora":
        return {"gradient_checkpointing": False, **grouped}, torch.bfloat16
    return {"per_device_train_batch_size": 32, **grouped}, torch.bfloat16


def main() -> None:
    how, base, rows = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    read = [json.loads(line) for line in rows.open(encoding="utf-8")]
    columns = {
        "input_ids": [row["ids"] for row in read],
        "completion_mask": [[0] * row["n_prompt"] + [1] * (len(row["ids"]) - row["n_prompt"]) for row in read],
    }
    extra, dtype = settings(how)
    adapters = None
    if how == "lora":
        from peft import LoraConfig

        adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        longest = max(len(row["ids"]) for row in read)
        extra |= {
            "per_device_train_batch_size": max(1, 1024 * len(read) // sum(len(row["ids"]) for row in read)),
            "max_length": longest,
        }
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch, max_steps=WARM_UP + STEPS, report_to="none", save_strategy="no", use_cpu=True, **extra
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(base, dtype=dtype),
            args=config,
            train_dataset=Dataset.from_dict(columns),
            processing_class=AutoTokenizer.from_pretrained(base),
            callbacks=[clock],
            peft_config=adapters,
        )
        trainer.data_collator = Counting(trainer.data_collator)
        trainer.train()
    clock.show(trainer.data_collator.seen)


if __name__ == "__main__":
    main()
