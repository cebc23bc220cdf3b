"""Tokens a second of fine-tunes on this machine: ours, ours before, a plain PyTorch loop, and TRL; in turn, in one run.

    python -m benchmarks.training.steps LANGUAGE_MODEL ENCODER [ENCODER ...] --rows ROWS.jsonl [--before CHECKOUT] [--trl SITE] [--rounds 3]

ROWS.jsonl holds `text` and `label`; the language model writes the label after the text. Every side gets the same batches
of about 1,024 tokens and updates every weight after each; a step is forward and backward pass, clipping and AdamW.
Tokens are all tokens of the rows, prompts included, padding not. The plain loop (benchmarks/peers/train_plain.py) runs in
fp32 and in bf16 autocast in the first round, then in the faster one; TRL's setting is the best we found. TRL is imported
from the folder SITE (`pip install --target SITE trl`). "Of the bound" means 6 FLOPs for each weight outside the
embedding and each token, over the faster of the machine's measured matrix rates. Medians over the rounds.
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
from typing import Any

from benchmarks.datasets import ROOT
from benchmarks.peers.train_plain import MIN_STEPS, SECONDS

N_ROWS = 2000


def backend_of(kind: str, n_labels: int) -> Any:
    if kind == "encoder":
        from smallfirst.training.encoders import ContrastiveBackend

        return ContrastiveBackend(n_labels)
    from smallfirst.training.causal_lm import CausalBackend

    return CausalBackend()


def row_of(kind: str, row: dict[str, Any]) -> Any:
    if kind == "encoder":
        from smallfirst.training.encoders import LabelledRow

        return LabelledRow(tuple(row["ids"]), row["label"])
    from smallfirst.training.config import TokenizedRow

    return TokenizedRow(tuple(row["ids"]), row["n_prompt"])


def batches_of(kind: str, base: str, source: Path) -> list[list[dict[str, Any]]]:
    from transformers import AutoTokenizer

    from smallfirst.training.config import TrainConfig

    tokenizer = AutoTokenizer.from_pretrained(base)
    read = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:N_ROWS]]
    labels = sorted({row["label"] for row in read})
    by_row: dict[Any, dict[str, Any]] = {}
    for row in read:
        ids = tokenizer.encode(row["text"])
        answer = [] if kind == "encoder" else tokenizer.encode(f" {row['label'].replace('_', ' ')}<|im_end|>")
        found = {"ids": ids + answer, "n_prompt": len(ids), "label": labels.index(row["label"])}
        by_row[row_of(kind, found)] = found
    batches = backend_of(kind, len(labels)).batches(list(by_row), TrainConfig(), 0)
    return [[by_row[row] for row in batch] for batch in batches]


def ours(kind: str, base: str, batches: list[list[dict[str, Any]]]) -> float:
    """Return the tokens a second of the checkout in PYTHONPATH."""
    from smallfirst.training.config import TrainConfig
    from smallfirst.training.loop import TrainingLoop

    rows = [[row_of(kind, row) for row in batch] for batch in batches]
    backend = backend_of(kind, 1 + max(row["label"] for batch in batches for row in batch))
    config = TrainConfig(learning_rate=1e-5, gradient_checkpointing=False)
    model, _ = backend.load(Path(base), config)
    chosen = backend.begin(model, [row for batch in rows for row in batch], config)
    dtype = model.body.dtype if kind == "encoder" else model.dtype
    print(f"  learns in {getattr(chosen, 'words', dtype)}", file=sys.stderr)
    backend.batches = lambda *_: rows
    loop = TrainingLoop(backend, model, [row for batch in rows for row in batch], config)
    steps = loop.steps()
    next(steps)
    tokens, n, began = 0, 0, time.perf_counter()
    while n < MIN_STEPS or time.perf_counter() - began < SECONDS:
        next(steps)
        n += 1
        tokens += sum(len(row["ids"]) for row in batches[n % len(batches)])
    return tokens / (time.perf_counter() - began)


def measured(command: list[str], package: Path, *more: str) -> float:
    paths = os.pathsep.join([str(package), str(ROOT), *more])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    whole = [sys.executable, "-P", *command]
    done = subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(done.stdout[-1000:] + done.stderr[-3000:])
    if "learns in" in done.stderr:
        print(done.stderr[done.stderr.rindex("  learns in") :].rstrip(), file=sys.stderr)
    last = json.loads(done.stdout.splitlines()[-1])
    return last if isinstance(last, float) else (last["tokens"] + last["rows"]) / last["seconds"]


def body_weights(base: str) -> int:
    from transformers import AutoModel

    named = AutoModel.from_pretrained(base).named_parameters()
    return sum(p.numel() for name, p in named if "embed" not in name and "pooler" not in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+", help="folders of weights, the language model first")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--before", type=Path, help="another checkout, which takes part as `before`")
    parser.add_argument("--trl", help="folder that TRL is imported from")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    from benchmarks.training.speed import matrix_rate

    with tempfile.TemporaryDirectory() as scratch:
        for number, base in enumerate(options.bases):
            kind = "encoder" if number else "language_model"
            path, rows = Path(scratch) / "batches.json", Path(scratch) / "rows"
            batches = batches_of(kind, base, options.rows)
            path.write_text(json.dumps(batches))
            rows.write_text("".join(json.dumps(row) + "\n" for batch in batches for row in batch))
            own = ["-m", "benchmarks.training.steps", "--own", kind, base, str(path)]
            plain = ["-m", "benchmarks.peers.train_plain", kind, base, str(path)]
            found: dict[str, list[float]] = defaultdict(list)
            rates: dict[str, list[float]] = defaultdict(list)
            for turn in range(options.rounds):
                rates["fp32"].append(matrix_rate(torch.float32, 0.5))
                rates["bf16"].append(matrix_rate(torch.bfloat16, 0.5))
                found["ours"].append(measured(own, ROOT))
                if options.before:
                    found["ours, before"].append(measured(own, options.before))
                for precision in ("fp32", "bf16"):
                    other = found[f"plain loop, {'bf16' if precision == 'fp32' else 'fp32'}"]
                    if turn == 0 or found[f"plain loop, {precision}"][0] > other[0]:
                        found[f"plain loop, {precision}"].append(measured([*plain, precision], ROOT))
                if options.trl and not number:
                    trl = ["-m", "benchmarks.peers.train_trl", "bf16 grouped", base, str(rows)]
                    found["TRL, bf16 weights, grouped by length"].append(measured(trl, ROOT, options.trl))
            middle = {name: statistics.median(each) for name, each in rates.items()}
            show(Path(base).name, found, middle, body_weights(base))


def show(base: str, found: dict[str, list[float]], rates: dict[str, float], weights: int) -> None:
    print(f"\n{base}: {weights / 1e6:.1f} M weights outside the embedding; ", end="")
    print(", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items()) + "\n")
    print("| who | tokens/s (median, least to most) | of the bound | ours is |\n|---|---|---|---|")
    middle = {name: statistics.median(each) for name, each in found.items() if each}
    for name, rate in middle.items():
        share, ratio = 6 * weights * rate / max(rates.values()), middle["ours"] / rate
        each = f"{min(found[name]):,.0f} to {max(found[name]):,.0f}, n={len(found[name])}"
        print(f"| {name} | {rate:,.0f} ({each}) | {share:.0%} | {ratio:.2f}× |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--own"]:
        print(ours(sys.argv[2], sys.argv[3], json.loads(Path(sys.argv[4]).read_text())))
    else:
        main()
