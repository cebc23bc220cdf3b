"""Our loop beside TRL's SFTTrainer and Unsloth on one GPU: the same base, rows, rank and tokens a step.

    python -m benchmarks.gpu.train_against_trl [--trl PYTHON] [--unsloth PYTHON] [--base FOLDER] [--rounds 3]
    python -m benchmarks.gpu.train_against_trl --toy --trl PYTHON

The sides run in turns, each in a process of its own; peers are interpreters of environments that have them. TRL gets
bf16, FlashAttention 2 and Liger where they are installed, and no checkpointing unless `--checkpointing` sets it for all.
Unsloth publishes twice the speed of Hugging Face with FlashAttention 2 for Llama 3.1 8B QLoRA
(unsloth.ai/docs/basics/unsloth-benchmarks, read on 2026-11-27): the verdict holds ours against both, measured here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import printed

ROWS_A_STEP, WARM_UP, STEPS = 32, 1, 4


def peer(side: str, base: Path, method: str, tokens: int, rows: int, checkpointing: bool) -> float:
    """Return tokens/s of a peer's trainer, in its own environment."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    settings: dict[str, Any] = {"r": 16, "lora_alpha": 32}
    if side == "unsloth":
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            str(base), max_seq_length=tokens, load_in_4bit=method == "qlora", dtype=torch.bfloat16
        )
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        checkpoint = "unsloth" if checkpointing else False
        model = FastLanguageModel.get_peft_model(
            model, **settings, target_modules=targets, use_gradient_checkpointing=checkpoint
        )
        adapters = None
    else:
        import transformers
        from peft import LoraConfig

        packed = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        loading: dict[str, Any] = {"dtype": torch.bfloat16}
        if method == "qlora":
            compute = {"bnb_4bit_compute_dtype": torch.bfloat16}
            loading["quantization_config"] = transformers.BitsAndBytesConfig(**packed, **compute)
        if importlib.util.find_spec("flash_attn") is not None:
            loading["attn_implementation"] = "flash_attention_2"
        model = transformers.AutoModelForCausalLM.from_pretrained(base, **loading)
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        adapters = LoraConfig(**settings, target_modules="all-linear", task_type="CAUSAL_LM")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    drawn = torch.randint(2, 500, (ROWS_A_STEP * (WARM_UP + STEPS), tokens), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch,
            max_steps=WARM_UP + STEPS,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=ROWS_A_STEP // rows,
            max_length=tokens,
            gradient_checkpointing=checkpointing,
            bf16=gpu,
            use_cpu=not gpu,
            use_liger_kernel=gpu and importlib.util.find_spec("liger_kernel") is not None,
            report_to="none",
            save_strategy="no",
        )
        clock = Clock()
        SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict({"input_ids": drawn.tolist()}),
            processing_class=tokenizer,
            peft_config=adapters,
            callbacks=[clock],
        ).train()
    return STEPS * ROWS_A_STEP * tokens / (clock.times[-1] - clock.times[WARM_UP - 1])


def ours(base: Path, method: Any, tokens: int, rows: int, checkpointing: bool) -> float:
    from benchmarks.gpu.train_rate import READS, measure
    from smallfirst.training.config import TrainConfig

    config = TrainConfig(
        method=method,
        batch_tokens=rows * tokens * READS,
        micro_tokens=rows * tokens,
        max_seq_tokens=tokens + 1,
        gradient_checkpointing=checkpointing,
    )
    return measure(base, config, rows=rows, tokens=tokens)["tokens_per_s"]


def run(python: str, side: str, base: Path, asked: argparse.Namespace) -> float:
    command = [python, "-m", "benchmarks.gpu.train_against_trl", "--side", side, "--base", str(base)]
    command += ["--method", asked.method, "--tokens", str(asked.tokens), "--rows", str(asked.rows)]
    command += ["--checkpointing"] * asked.checkpointing
    return float(printed(command))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path)
    parser.add_argument("--trl")
    parser.add_argument("--unsloth")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--side", default="")
    asked = parser.parse_args()
    if asked.side:
        how = (asked.base, asked.method, asked.tokens, asked.rows, asked.checkpointing)
        print(json.dumps(ours(*how) if asked.side == "ours" else peer(asked.side, *how)))
        return
    if asked.toy:
        asked.tokens = 64
    sides = {"ours": sys.executable, "trl": asked.trl, "unsloth": asked.unsloth}
    found: dict[str, list[float]] = {side: [] for side, python in sides.items() if python}
    with tempfile.TemporaryDirectory() as scratch:
        from benchmarks.gpu.train_rate import draw_base

        base = asked.base or draw_base(Path(scratch), "toy" if asked.toy else "8b")
        for _ in range(asked.rounds):
            for side, rates in found.items():
                rates.append(run(sides[side], side, base, asked))
    middle = {side: statistics.median(rates) for side, rates in found.items()}
    for side, rates in found.items():
        print(f"{side}: {middle[side]:,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f}, {len(rates)} rounds)")
    for side in middle.keys() - {"ours"}:
        ratio = middle["ours"] / middle[side]
        print(f"{'BEATS' if ratio > 1 else 'BEHIND'} {side}: {ratio:.2f} times")


if __name__ == "__main__":
    main()
