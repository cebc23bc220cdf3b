"""Time training steps on short rows, before and after a change, side by side in one run.

    python -m benchmarks.training.short_rows --before WORKTREE [--models smollm2 minilm mpnet] [--rounds 3]

WORKTREE is a checkout of the commit to compare with. Rows are Banking77 training texts: their first six words, whole, or
joined to about 60 tokens. The causal model learns one code token after a ChatML prompt; the encoders are fine-tuned with
a head as the candidate `tuned` is. Each round runs each side once in a process of its own: two steps to warm up, then
some steps, with the machine's bf16 matrix rate measured before and after. All is divided by processor time of one thread,
which other work on the machine changes least. Medians over the rounds are shown. "Of the peak": 6 FLOPs for each weight
outside the embedding and each real token, over the bf16 rate; a beginning read once for many rows counts for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.run import data_folder
from benchmarks.paths import ROOT

WARM_UP = 2
BASES = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "mpnet": "sentence-transformers/all-mpnet-base-v2",
}
KINDS = ("six words", "whole", "60 tokens")


def matrix_rate(seconds: float = 0.5) -> float:
    """Return the measured bf16 matrix rate in FLOP per processor second."""
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    n, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        a @ b
        n += 1
    return n * 2 * 2048**3 / (time.process_time() - began)


def texts(kind: str) -> list[tuple[str, str]]:
    """Return (text, label) of every fifth training row, cut or joined."""
    with (data_folder("banking77") / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if kind == "six words":
        return [(" ".join(row["text"].split()[:6]), row["label"]) for row in rows[::5]]
    if kind == "whole":
        return [(row["text"], row["label"]) for row in rows[::5]]
    return [(" ".join(other["text"] for other in rows[i : i + 4]), rows[i]["label"]) for i in range(0, len(rows), 4)]


def prepare(name: str, kind: str, base: Path) -> Any:
    """Return a training loop ready to step."""
    from smallfirst.training.config import TrainConfig
    from smallfirst.training.loop import TrainingLoop

    config = TrainConfig(learning_rate=2e-5)
    data = texts(kind)
    backend: Any
    learnt: list[Any]
    if name == "smollm2":
        from smallfirst.training.batches import TokenizedRow
        from smallfirst.training.causal_lm import CausalBackend

        backend = CausalBackend()
        model, tokenizer = backend.load(base, config)
        prompts = [tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n") for text, _ in data]
        learnt = [TokenizedRow((*ids, 300), len(ids)) for ids in prompts]
        backend.begin(model, learnt, config)
    else:
        from smallfirst.training.recipes.contrastive import ContrastiveBackend, LabelledRow

        labels = sorted({label for _, label in data})
        backend = ContrastiveBackend(len(labels))
        model, tokenizer = backend.load(base, config)
        learnt = [LabelledRow(tuple(tokenizer.encode(text)), labels.index(label)) for text, label in data]
        backend.begin(model, [next(row for row in learnt if row.label == i) for i in range(len(labels))], config)
    return TrainingLoop(backend, model, learnt, config)


def own(name: str, kind: str, base: Path, n_steps: int) -> dict[str, float]:
    """Figures of the steps of one side, in this process."""
    fit = prepare(name, kind, base)
    steps = fit.steps()
    for _ in range(WARM_UP):
        next(steps)
    before, tokens = matrix_rate(), fit.tokens
    began = time.process_time()
    for _ in range(n_steps):
        next(steps)
    rate = (fit.tokens - tokens) / (time.process_time() - began)
    weights = sum(p.numel() for n, p in fit.model.named_parameters() if p.dim() == 2 and "embed" not in n)
    a_row = statistics.mean(len(row.ids) - 1 for row in fit.rows)
    share = 6 * weights * rate / ((before + matrix_rate()) / 2)
    return {"tokens": rate, "rows": rate / a_row, "share": share}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(BASES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--base", action="append", default=[], help="MODEL=FOLDER where the catalogue has none")
    wanted = parser.parse_args()
    from smallfirst.models.catalog import find_weights

    given = dict(pair.split("=", 1) for pair in wanted.base)
    found: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    for _ in range(wanted.rounds):
        for name in wanted.models:
            base = given.get(name) or str(find_weights(BASES[name]))
            for kind in wanted.kinds:
                for side, source in (("before", wanted.before), ("after", ROOT)):
                    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
                    command = [sys.executable, __file__, "--own", name, kind, base, str(wanted.steps)]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                    if done.returncode:
                        sys.exit(f"{name}, {kind}, {side} failed:\n{done.stderr[-3000:]}")
                    found[name, kind, side].append(json.loads(done.stdout.strip().splitlines()[-1]))
                    print(name, kind, side, found[name, kind, side][-1], file=sys.stderr, flush=True)
    middle = {
        key: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for key, runs in found.items()
    }
    print("| model | rows | tokens/s before | after | rows/s before | after | ratio | of the peak before | after |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, kind, side in middle:
        if side == "after":
            old, new = middle[name, kind, "before"], middle[name, kind, "after"]
            print(
                f"| {name} | {kind} | {old['tokens']:,.0f} | {new['tokens']:,.0f} | {old['rows']:.1f} | {new['rows']:.1f} "
                f"| {new['tokens'] / old['tokens']:.2f} | {old['share']:.0%} | {new['share']:.0%} |"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--own"]:
        print(json.dumps(own(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))))
    else:
        main()
