"""Time training steps side by side in one run: ours and TRL's SFTTrainer; the same rows and base model.

    python -m benchmarks.training.speed --base FOLDER --rows ROWS.jsonl [--trl PYTHON] [--rounds 3]

ROWS.jsonl holds `text` and `label`; a row is a conversation of two turns under the base model's ChatML tokens, the
label's text its answer. There is no system prompt unless `--system TEXT` gives one, which we compute once per batch. TRL
needs an environment of its own (`pip install trl`): give its interpreter. It gets our tokens. Each round runs every side once, a warm-up and then some steps, with the machine's bf16 and fp32
matrix rate measured before and after each; medians over the rounds are shown. `--method lora` trains adapters of rank 16
on both sides (TRL with peft), `--tokens 2048` joins texts to rows of so many tokens. "Of the peak" means 6 FLOPs for each weight
outside the embedding and each real token, over the bf16 rate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.datasets import ROOT

WARM_UP, STEPS = (1, 3) if os.environ.get("OMP_NUM_THREADS") == "1" else (2, 8)
now = time.process_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
"""With one thread processor time, which other work on the machine changes least."""


class Side(NamedTuple):
    """Who trains, and how."""

    name: str
    command: tuple[str, ...]
    """Interpreter and script; rows and base are added."""


def matrix_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return the measured matrix rate in FLOP/s on a shape typical of the model."""
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    a @ b
    n, began = 0, now()
    while now() - began < seconds:
        a @ b
        n += 1
    return n * 2 * 2048**3 / (now() - began)


def write_rows(base: Path, source: Path, into: Path, n: int, system: str, tokens: int = 0) -> None:
    """Write the rows in tokens to `into`, and the conversations for a side that tokenizes itself.

    With `tokens` texts are joined to rows of about so many.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    with source.open(encoding="utf-8") as lines, into.open("w", encoding="utf-8") as out:
        joined, length = [], 0
        for line, _ in zip(lines, range(n), strict=False):
            row = json.loads(line)
            if tokens:
                joined.append(row["text"])
                length += len(tokenizer.encode(row["text"])) + 1
                if length < tokens:
                    continue
                row["text"], joined, length = "\n".join(joined), [], 0
            answer = row["label"].replace("_", " ")
            prompt = tokenizer.encode(f"{before}<|im_start|>user\n{row['text']}<|im_end|>\n<|im_start|>assistant\n")
            target = tokenizer.encode(f"{answer}<|im_end|>")
            record = {"ids": prompt + target, "n_prompt": len(prompt), "text": row["text"]}
            record |= {"answer": answer, "system": system}
            out.write(json.dumps(record) + "\n")


def ours(base: Path, rows: Path, method: Any) -> dict[str, float]:
    from smallfirst.training.causal_lm import CausalBackend
    from smallfirst.training.config import TokenizedRow, TrainConfig, epoch_seed
    from smallfirst.training.loop import TrainingLoop

    read = [json.loads(line) for line in rows.open(encoding="utf-8")]
    longest = max(len(row["ids"]) for row in read)
    config = TrainConfig(batch_tokens=max(1024, longest), method=method, gradient_checkpointing=False)
    learnt = [TokenizedRow(tuple(row["ids"]), row["n_prompt"]) for row in read]
    study = CausalBackend()
    model, _ = study.load(base, config)
    study.begin(model, learnt, config)
    fit = TrainingLoop(study, model, learnt, config)
    batches = study.batches(learnt, config, epoch_seed(config, 0))
    steps = fit.steps()
    for _ in range(WARM_UP):
        next(steps)
    tokens, began = fit.tokens, now()
    for _ in range(STEPS):
        next(steps)
    seconds = now() - began
    n_rows = sum(len(batch) for batch in batches[WARM_UP : WARM_UP + STEPS])
    return {"tokens": fit.tokens - tokens, "rows": n_rows, "seconds": seconds}


def run_side(side: Side, base: Path, rows: Path) -> dict[str, float]:
    """Return tokens, rows and seconds of the side's steps; exit with its output if it fails."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **quiet}
    done = subprocess.run(
        [*side.command, str(base), str(rows)], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        sys.exit(f"{side.name} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def sides(wanted: argparse.Namespace) -> list[Side]:
    own = (sys.executable, "-m", "benchmarks.training.speed", "--own", wanted.method)
    found = [Side("ours", own)]
    if wanted.trl:
        script = "-m", "benchmarks.peers.train_trl"
        ways = ("lora",) if wanted.method == "lora" else ("defaults", "bf16 grouped")
        found += [Side(f"TRL, {how}", (wanted.trl, *script, how)) for how in ways]
    return found


def show(found: dict[str, list[dict[str, float]]], rates: dict[str, list[float]], weights: int) -> None:
    middle = {name: statistics.median(r["tokens"] / r["seconds"] for r in runs) for name, runs in found.items()}
    bf16, fp32 = (statistics.median(rates[name]) for name in ("bf16", "fp32"))
    print(
        f"matrix rate: bf16 {bf16 / 1e9:.0f} GFLOP/s, fp32 {fp32 / 1e9:.0f}; {weights / 1e6:.1f} M weights are counted"
    )
    print("| who | tokens/s (median, least to most) | rows/s | of the bf16 peak | ours is |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        each = sorted(r["tokens"] / r["seconds"] for r in runs)
        rows = statistics.median(r["rows"] / r["seconds"] for r in runs)
        share = statistics.median(6 * weights * r["tokens"] / r["seconds"] / r["peak"] for r in runs)
        print(
            f"| {name} | {middle[name]:.0f} ({each[0]:.0f} to {each[-1]:.0f}) | {rows:.1f} | {share:.0%} "
            f"| {middle['ours'] / middle[name]:.1f}× |"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--trl")
    parser.add_argument("--system", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", choices=("full", "lora", "qlora"), default="full")
    parser.add_argument("--tokens", type=int, default=0)
    wanted = parser.parse_args()
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(wanted.base)
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    del model
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        write_rows(wanted.base, wanted.rows, rows, 2000, wanted.system, wanted.tokens)
        for number in range(wanted.rounds):
            for side in sides(wanted):
                before = matrix_rate(torch.bfloat16)
                rates["fp32"].append(matrix_rate(torch.float32))
                figures = run_side(side, wanted.base, rows)
                after = matrix_rate(torch.bfloat16)
                rates["bf16"] += [before, after]
                found[side.name].append({**figures, "peak": (before + after) / 2})
                rate = figures["tokens"] / figures["seconds"]
                print(f"round {number + 1}: {side.name}: {rate:.0f} tokens/s", file=sys.stderr, flush=True)
    show(found, rates, weights)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--own"]:
        print(json.dumps(ours(Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[2])))
    else:
        main()
