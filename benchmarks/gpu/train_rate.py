"""Tokens a second and share of the peak of LoRA and QLoRA on an 8 B model, beside what others have published.

    python -m benchmarks.gpu.train_rate [--base FOLDER] [--methods lora,qlora] [--tokens 4096] [--rows 2]
    python -m benchmarks.gpu.train_rate --toy        # the same steps on a tiny model: proves that it runs

Without `--base` a model of Llama 3.1 8B's shape is drawn at random, so nothing is downloaded; the rate is the same. Rows
are full, every token is a target, and a step accumulates `--rows` rows 16 times, as in the published run:
NeMo AutoModel, LoRA on Llama3 8B, one H100, bf16, rows of 4,096 tokens, 2 at once, 32 a step: 12,473 tokens/s and 402
TFLOP/s by 4 FLOPs a weight and token (docs.nvidia.com/nemo/automodel, performance summary, 2026-04-17).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from smallfirst.models.local.weights import choose_device
from smallfirst.training.causal_lm import CausalBackend
from smallfirst.training.config import TokenizedRow, TrainConfig
from smallfirst.training.loop import TrainingLoop

PUBLISHED_TOKENS_PER_S = {"lora": 12_473}
H100_PEAK = 989e12
"""bf16, without sparsity."""
WARM_UP, STEPS, READS = 1, 4, 16
SHAPES = {"8b": (128_256, 4096, 14_336, 32, 32, 8), "toy": (512, 64, 192, 2, 4, 2)}
SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
]
"""What the numbers of a shape are."""


def draw_base(folder: Path, shape: str) -> Path:
    """Write a seeded random model of this shape and a tokenizer of one word; return the folder."""
    import tokenizers
    import transformers

    torch.manual_seed(0)
    with choose_device():
        sizes: dict[str, Any] = dict(zip(SIZES, SHAPES[shape], strict=True))
        sizes |= {"max_position_embeddings": 1 << 20, "rope_theta": 500_000.0}
        config = transformers.LlamaConfig(**sizes, dtype="bfloat16")
        model = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0, "</s>": 1}, unk_token="x"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder)
    return folder


def full_rows(n: int, tokens: int, vocabulary: int) -> list[TokenizedRow]:
    """Return `n` rows of so many inputs, every token but the first a target."""
    drawn = torch.randint(vocabulary, (n, tokens + 1), generator=torch.Generator().manual_seed(0))
    return [TokenizedRow(tuple(ids), 1) for ids in drawn.tolist()]


def measure(base: Path, config: TrainConfig, *, rows: int, tokens: int) -> dict[str, float]:
    """Return tokens/s, FLOP/s by 4 FLOPs a weight and token, and the peak memory of some steps."""
    backend = CausalBackend()
    model, _ = backend.load(base, config)
    learnt = full_rows(rows * READS * (WARM_UP + STEPS), tokens, model.config.vocab_size)
    backend.begin(model, learnt, config)
    loop = TrainingLoop(backend, model, learnt, config)
    steps, gpu = loop.steps(), torch.cuda.is_available()
    for _ in range(WARM_UP):
        next(steps)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    before, began = loop.tokens, time.perf_counter()
    for _ in range(STEPS):
        last = next(steps)
    seconds = time.perf_counter() - began
    weights = sum(p.numel() for p in model.parameters() if p.dtype != torch.uint8)
    weights += 2 * sum(p.numel() for p in model.parameters() if p.dtype == torch.uint8)  # two in a byte
    rate = (loop.tokens - before) / seconds
    peak = torch.cuda.max_memory_allocated() / 1e9 if gpu else 0.0
    return {"tokens_per_s": rate, "flops_per_s": 4 * weights * rate, "peak_gb": peak, "loss": last.loss}


def verdict(method: str, shape: str, found: dict[str, float]) -> str:
    """Say how the rate stands to the published one; nothing where the two cannot be compared."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a processor"
    wanted = PUBLISHED_TOKENS_PER_S.get(method)
    if "H100" not in device or shape != "8b" or wanted is None:
        return f"no verdict: {shape} with {method} on {device}, and nothing was published for that"
    ratio = found["tokens_per_s"] / wanted
    return f"{'BEATS' if ratio > 1 else 'BEHIND'} the published {wanted:,} tokens/s: {ratio:.2f} times"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path)
    parser.add_argument("--methods", default="lora,qlora")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--toy", action="store_true")
    asked = parser.parse_args()
    shape = "toy" if asked.toy else "8b"
    tokens = 64 if asked.toy else asked.tokens
    with tempfile.TemporaryDirectory() as scratch:
        base = asked.base or draw_base(Path(scratch), shape)
        for method in asked.methods.split(","):
            config = TrainConfig(
                method=method,
                lora_rank=asked.rank,
                batch_tokens=asked.rows * tokens * READS,
                micro_tokens=asked.rows * tokens,
                max_seq_tokens=tokens + 1,
                gradient_checkpointing=asked.checkpointing or None,
            )
            found = measure(base, config, rows=asked.rows, tokens=tokens)
            share = found["flops_per_s"] / H100_PEAK
            print(json.dumps({"method": method, **found, "share_of_h100_peak": share}))
            print(f"{method}: {verdict(method, shape if asked.base is None else 'given', found)}", flush=True)


if __name__ == "__main__":
    main()
