"""Adapters of rank 16: our loop beside TRL's SFTTrainer with peft, short rows and rows of 2,000 tokens, on a processor.

    python -m benchmarks.training.adapter_speed --base FOLDER --rows ROWS.jsonl --trl PYTHON [--rounds 2] [--load WORDS]

ROWS.jsonl holds `text` and `label`. Both sides get the same tokens, one warm-up and three steps of about 1,024 tokens (one
row of 2,000), bf16 weights, one thread and processor time, in turns; TRL gets rows of similar length together and no
checkpointing, its best setting known. Ours keeps fp32 masters, TRL none. Then ours alone with a base in 4 bits, and with
layers checkpointed. Writes benchmarks/results/adapter_speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.datasets import RESULTS
from benchmarks.training.speed import Side, run_side, write_rows

LENGTHS = {"short rows (a question, its label)": 0, "rows of 2,000 tokens": 2000}
PAGE = RESULTS / "adapter_speed.md"


def sides(trl: str) -> dict[str, Side]:
    """Everybody who takes part."""
    own = (sys.executable, "-m", "benchmarks.training.speed", "--own")
    return {
        "ours, lora": Side("ours", (*own, "lora", "0")),
        "TRL, lora": Side("TRL", (trl, "-m", "benchmarks.peers.train_trl", "lora")),
        "ours, qlora": Side("ours", (*own, "qlora", "0")),
        "ours, lora, layers checkpointed": Side("ours", (*own, "lora+checkpointed", "0")),
    }


def measure(base: Path, source: Path, trl: str, rounds: int, tokens: int) -> dict[str, list[float]]:
    """Return tokens/s of each side's runs, taken in turns."""
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        write_rows(base, source, rows, 2000, "", tokens)
        for _ in range(rounds):
            for name, side in sides(trl).items():
                figures = run_side(side, base, rows)
                found[name].append(figures["tokens"] / figures["seconds"])
                print(json.dumps({"tokens": tokens, "side": name, "tokens_per_s": found[name][-1]}), flush=True)
    return found


def page(found: dict[str, dict[str, list[float]]], command: str, load: str) -> str:
    """Return the results page."""
    lines = [
        "# Adapters beside TRL on a processor",
        "",
        f"`{command}`, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11, 2026-11-27; {load}. SmolLM2-135M, adapters of",
        "rank 16 on all linear layers, one thread, processor time, three steps after a warm-up, medians of the runs in turns.",
        "Too few runs for an interval: least and most are shown, and a ratio below 1.2 says nothing.",
        "",
    ]
    for length, runs in found.items():
        middle = {name: statistics.median(rates) for name, rates in runs.items()}
        lines += [f"## {length[0].upper()}{length[1:]}", ""]
        lines += ["| who | tokens/s (least to most) | runs | ours with lora is |", "|---|---|---|---|"]
        for name, rates in runs.items():
            ratio = middle["ours, lora"] / middle[name]
            spread = f"{middle[name]:.0f} ({min(rates):.0f} to {max(rates):.0f})"
            lines.append(f"| {name} | {spread} | {len(rates)} | {ratio:.2f}× |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--trl", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--load", default="nothing else running")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found = {
        words: measure(asked.base, asked.rows, asked.trl, asked.rounds, tokens) for words, tokens in LENGTHS.items()
    }
    command = (
        f"python -m benchmarks.training.adapter_speed --base FOLDER --rows ROWS --trl PYTHON --rounds {asked.rounds}"
    )
    PAGE.write_text(page(found, command, asked.load), encoding="utf-8")


if __name__ == "__main__":
    main()
