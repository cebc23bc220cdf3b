"""LLaMA-Factory's side of benchmarks/training/speed.py, run by the interpreter of an environment that has llamafactory.

    python -m benchmarks.peers.train_llamafactory BASE ROWS.jsonl

Full fine-tune in bf16 with its own ChatML template, 32 rows a batch; everything else is its default. It tokenizes the
rows itself, so its tokens are counted from its batches.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import transformers.utils  # noqa: F401 - looks for torchaudio, before it may have to be replaced

try:
    import torchaudio  # noqa: F401
except (ImportError, OSError):  # no build beside this torch; text needs none
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")

from llamafactory.train.sft import workflow
from llamafactory.train.tuner import run_exp

from benchmarks.training.clock import STEPS, WARM_UP, Clock, size

SEEN: list[tuple[int, int]] = []


class Counting(workflow.SFTDataCollatorWith4DAttentionMask):
    """Wrap its collator to count real tokens and rows of each batch."""

    def __call__(self, features: list[Any]) -> Any:
        """The batch."""
        SEEN.append(size(features))
        return super().__call__(features)


def main() -> None:
    base, rows = Path(sys.argv[1]), Path(sys.argv[2])
    read = [json.loads(line) for line in rows.open(encoding="utf-8")]
    clock = Clock()
    workflow.SFTDataCollatorWith4DAttentionMask = Counting
    with tempfile.TemporaryDirectory() as scratch:
        data = [
            {"instruction": row["text"], "input": "", "output": row["answer"], "system": row["system"]} for row in read
        ]
        (Path(scratch) / "rows.json").write_text(json.dumps(data), encoding="utf-8")
        columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
        known = {"rows": {"file_name": "rows.json", "columns": columns}}
        (Path(scratch) / "dataset_info.json").write_text(json.dumps(known), encoding="utf-8")
        settings = {
            "model_name_or_path": str(base),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "dataset": "rows",
            "dataset_dir": scratch,
            "template": "chatml",
            "default_system": "",
            "output_dir": f"{scratch}/out",
            "max_steps": WARM_UP + STEPS,
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 1,
            "bf16": True,
            "pure_bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "overwrite_cache": True,
        }
        run_exp(settings, callbacks=[clock])
    clock.show(SEEN)


if __name__ == "__main__":
    main()
