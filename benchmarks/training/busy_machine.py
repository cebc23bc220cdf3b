"""Training and reading by a sentence encoder, and scoring by a language model, beside busy programs.

    python -m benchmarks.training.busy_machine --base FOLDER --rows ROWS.jsonl [--language-model FOLDER] [--busy 4] [--rounds 3]

Threads spin for long while they wait, and shortly. Reading and scoring go through the thread in which `serve` computes.
ROWS.jsonl holds `text` and `label`. Each round runs every case once, in a process of its own and in turn: alone, then
beside so many processes that count. A fair share is what as many equal processes would get: with b busy processes on c cores
and c threads of ours c / (c + b) of the rate alone. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path

from benchmarks.datasets import read_lines
from benchmarks.processes import printed

SECONDS, N_ROWS = 6.0, 512
POLICIES = {"libgomp's default, 300,000 turns": "300000", "ours, 10,000 turns": "10000"}
"""GOMP_SPINCOUNT by name: how long a thread spins before it sleeps."""


def train_rate(base: Path, rows: list[dict[str, str]]) -> float:
    """Return the tokens a second of an encoder's fine-tune."""
    from smallfirst.training.config import TrainConfig
    from smallfirst.training.encoders import ContrastiveBackend, LabelledRow
    from smallfirst.training.loop import TrainingLoop

    labels = sorted({row["label"] for row in rows})
    backend, config = ContrastiveBackend(len(labels)), TrainConfig(batch_tokens=1024, learning_rate=1e-4)
    model, tokenizer = backend.load(base, config)
    learnt = [LabelledRow(tuple(tokenizer.encode(row["text"])), labels.index(row["label"])) for row in rows]
    backend.begin(model, learnt, config)
    loop = TrainingLoop(backend, model, learnt, config)
    steps = loop.steps()
    next(steps)
    tokens, began = loop.tokens, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        next(steps)
    return (loop.tokens - tokens) / (time.perf_counter() - began)


def read_rate(base: Path, rows: list[dict[str, str]]) -> float:
    """Return the texts a second that the encoder reads as it serves, one at a time."""
    from smallfirst.models.encoder.sentence_encoder import open_encoder

    encoder, n = open_encoder(base), 0
    encoder.embed([row["text"] for row in rows[:8]])
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        encoder.embed([rows[n % len(rows)]["text"]])
        n += 1
    return n / (time.perf_counter() - began)


def score_rate(base: Path, rows: list[dict[str, str]]) -> float:
    """Return the texts a second that a language model labels as it serves, eight at a time."""
    from smallfirst.models.local.label_scorer import LabelScorer, PackedDecoder
    from smallfirst.models.local.tokenizer import choose_label_tokens
    from smallfirst.models.local.weights import load_causal
    from smallfirst.models.manifest import Manifest
    from smallfirst.tasks.classify import Classify

    model, tokenizer = load_causal(base)
    task = Classify(name="busy", labels=tuple(sorted({row["label"] for row in rows})))
    codes = choose_label_tokens(task.labels, tokenizer)
    scorer = LabelScorer(model, tokenizer, Manifest(kind="label_tokens", task=task, base="", label_tokens=codes))
    scorer.packed, scorer._serving, n = PackedDecoder(model), True, 0
    scorer.score([row["text"] for row in rows[:8]])
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        scorer.score([rows[(n + i) % len(rows)]["text"] for i in range(8)])
        n += 8
    return n / (time.perf_counter() - began)


MEASURES = {"training, tokens/s": train_rate, "reading one text at a time, texts/s": read_rate}
SCORING = "scoring by the language model, texts/s"


@contextmanager
def busy(n: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measured(what: str, policy: str, options: argparse.Namespace) -> float:
    module = "benchmarks.training.busy_machine"
    base = options.language_model if what == SCORING else options.base
    command = [sys.executable, "-m", module, "--base", base, "--rows", options.rows, "--measure", what]
    return float(printed(command, GOMP_SPINCOUNT=policy))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--busy", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--language-model", type=Path)
    parser.add_argument("--measure", choices=(*MEASURES, SCORING))
    options = parser.parse_args()
    if options.measure:
        rows = [*islice(read_lines(options.rows), N_ROWS)]
        print((MEASURES | {SCORING: score_rate})[options.measure](options.base, rows))
        return
    measures = [*MEASURES, *([SCORING] if options.language_model else [])]
    found: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for what, (name, policy), n in product(measures, POLICIES.items(), (0, options.busy)):
            with busy(n):
                found[what, name, n].append(measured(what, policy, options))
    n_cores = len(os.sched_getaffinity(0))
    fair = min(1.0, n_cores / (n_cores + options.busy))
    beside = f"beside {options.busy} | of a fair share ({fair:.0%} of alone)"
    print(f"| what | threads that wait spin for | alone | {beside} |\n|---|---|---|---|---|")
    for what, name in product(measures, POLICIES):
        alone, beside = (statistics.median(found[what, name, n]) for n in (0, options.busy))
        each = " to ".join(f"{find(found[what, name, options.busy]):,.1f}" for find in (min, max))
        print(f"| {what} | {name} | {alone:,.1f} | {beside:,.1f} ({each}) | {beside / alone / fair:.0%} |")


if __name__ == "__main__":
    main()
