"""The longest row that QLoRA trains on this GPU, and whether the memory foretold is the memory taken.

    python -m benchmarks.gpu.train_memory [--base FOLDER] [--method qlora] [--from-tokens 4096]
    python -m benchmarks.gpu.train_memory --toy      # the same on a tiny model and a processor, activations alone

One row a step, rank 32, layers checkpointed; its length doubles until memory ends. Published for Llama 3.1 8B with QLoRA
of rank 32 at batch 1: Unsloth reaches 78,475 tokens on 24 GB and 342,733 on 80 GB, Hugging Face with FlashAttention 2
reaches 5,789 and 28,454 (unsloth.ai/docs/basics/unsloth-benchmarks, read on 2026-11-27).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.train_rate import draw_base, full_rows
from smallfirst.models.base_size import read_base_size
from smallfirst.training.causal_lm import CausalBackend, target_loss
from smallfirst.training.config import TokenizedRow, TrainConfig
from smallfirst.training.estimates import MicroBatchShape, activation_bytes, peak_memory
from smallfirst.training.loop import TrainingLoop

PUBLISHED = {24: (78_475, 5_789), 80: (342_733, 28_454)}
"""Longest rows of Unsloth and of Hugging Face by the card's GB."""


def foretold_and_taken(base: Path, config: TrainConfig, row: TokenizedRow) -> tuple[float, float]:
    """Return the bytes foretold and taken: at the peak of two steps on a GPU, kept by one forward pass elsewhere."""
    size = read_base_size(base)
    assert size is not None
    backend, gpu = CausalBackend(), torch.cuda.is_available()
    shape = MicroBatchShape(1, len(row.ids) - 1, len(row.ids) - row.n_prompt)
    model, _ = backend.load(base, config)
    backend.begin(model, [row], config)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        steps = TrainingLoop(backend, model, [row] * 2, config).steps()
        next(steps)
        next(steps)
        peak = peak_memory(size, config, shape, gpu=True)
        return peak.weights + peak.read, float(torch.cuda.max_memory_allocated())
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = target_loss(model.train(), [row])
    assert loss.requires_grad
    return activation_bytes(size, config, shape, gpu=False), float(sum(kept.values()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path)
    parser.add_argument("--method", default="qlora")
    parser.add_argument("--from-tokens", type=int, default=4096)
    parser.add_argument("--toy", action="store_true")
    asked = parser.parse_args()
    longest, tokens = 0, 256 if asked.toy else asked.from_tokens
    with tempfile.TemporaryDirectory() as scratch:
        base = asked.base or draw_base(Path(scratch), "toy" if asked.toy else "8b")
        while tokens <= (1024 if asked.toy else 1 << 20):
            config = TrainConfig(
                method=asked.method,
                lora_rank=32,
                gradient_checkpointing=not asked.toy,
                batch_tokens=tokens,
                max_seq_tokens=tokens + 1,
            )
            try:
                foretold, taken = foretold_and_taken(base, config, full_rows(1, tokens, 500)[0])
            except torch.OutOfMemoryError:
                break
            print(json.dumps({"tokens": tokens, "foretold_gb": foretold / 1e9, "taken_gb": taken / 1e9}))
            print(f"  taken is {taken / foretold:.2f} of what was foretold", flush=True)
            longest, tokens = tokens, 2 * tokens
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    if not torch.cuda.is_available():
        print("no verdict: there is no GPU here")
        return
    total = torch.cuda.get_device_properties(0).total_memory / 1e9
    card = min(PUBLISHED, key=lambda size: abs(size - total))
    best, other = PUBLISHED[card]
    words = "BEATS both" if longest > best else "BETWEEN the two" if longest > other else "BEHIND both"
    print(f"longest row {longest:,} tokens on {total:.0f} GB: {words} ({best:,} Unsloth, {other:,} HF on {card} GB)")


if __name__ == "__main__":
    main()
