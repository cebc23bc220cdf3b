"""Words and encoders over HTTP, alone and behind their Router, beside sentence-transformers + FastAPI, in one run.

    python -m benchmarks.serving.encoders FOLDER [--before TREE] [--rounds 3]

Tasks of Banking77's hosted rows (words, the frozen encoder, the fine-tuned one) that FOLDER lacks are fitted first, by
this checkout and by that of `--before`, which takes minutes; FOLDER/LABEL/state/weights may link to weights that are
there. A server answers each row once alone and once more behind the Router, with domain check, key and ledger; the
large model's answers are recorded. The peers, which need sentence-transformers in PYTHONPATH, read the same weights in
fp32, as they come. Three rounds take ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets import RESULTS, ROOT, hosted_rows, processor, read_lines
from benchmarks.serving.servers import Row, Side, measure, say, started
from smallfirst.base.stats.intervals import wilson
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.models.manifest import read_manifest

LEVELS = {1: 100, 8: 250, 32: 500}
"""Clients, and rows that are measured with so many."""
LADDERS = {"words": ["words", "encoder"], "encoder": ["encoder"], "tuned": ["tuned"]}
N_TRAIN = 5000


def prepare(folder: Path, label: str, tree: Path) -> None:
    """Fit the tasks that have not gone live yet by a checkout, in a state folder of its own."""
    rows = hosted_rows("hosted_banking77", folder)
    lines = (rows / "train.jsonl").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    for name, ladder in LADDERS.items():
        task = folder / label / name
        if any((folder / label / "state" / "tasks" / f"bank-{name}").glob("*/promoted.json")):
            continue
        task.mkdir(parents=True, exist_ok=True)
        (task / "train.jsonl").write_text("\n".join(lines[:N_TRAIN]) + "\n", encoding="utf-8")
        values = {"name": f"bank-{name}", "data": {"train": "train.jsonl"}, "ladder": ladder}
        values |= {"large": {"recorded": str(rows / "recorded.jsonl")}, "gate": {"accuracy_at_least": 0.7}}
        values |= {"routing": {"small": name, "guarantee": {"max_error": 0.1}}}
        (task / "task.yaml").write_text(json.dumps(values), encoding="utf-8")
        say(f"{label}: {name} is fitted")
        command = [sys.executable, "-P", "-m", "smallfirst.interfaces.cli.main", "run", "task.yaml"]
        subprocess.run(command, cwd=task, env=environment(folder, label, tree), check=True, capture_output=True)


def environment(folder: Path, label: str, tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "SMALLFIRST_HOME": str(folder / label / "state")}


def ours(folder: Path, label: str, tree: Path, name: str) -> dict[str, Side]:
    """`smallfirst serve` of one task: its model alone, and its Router."""
    _, key = KeyStore(folder / label / "state" / "ledger.db").create(f"load-{secrets.token_hex(4)}", KeyPolicy())
    program = [sys.executable, "-P", "-m", "smallfirst.interfaces.cli.main", "serve", str(folder / label / name)]
    model = model_folder(folder, label, name)

    def side(how: str, served: str) -> Side:
        return Side(
            f"{name}, {how}, {label}",
            lambda port, _: [*program, "--replay-large", "--port", str(port)],
            "/v1/chat/completions",
            lambda row: {"model": served, "messages": [{"role": "user", "content": row.text}]},
            lambda reply: reply["choices"][0]["message"]["content"],
            {text: text for text in read_manifest(model).task.labels},
            headers={"Authorization": f"Bearer {key}"},
            environment=environment(folder, label, tree),
        )

    return {"alone": side("alone", f"bank-{name}-small"), "Router": side("Router", f"bank-{name}")}


def peer(folder: Path, name: str, batch: int) -> dict[str, Side]:
    """sentence-transformers behind FastAPI, with the weights of the model that is served now."""
    model = model_folder(folder, "now", name)
    program = [sys.executable, "-m", "benchmarks.peers.serve_transformers", str(model), "--encoder"]
    program += ["--batch", str(batch)] if batch else []
    side = Side(
        f"{name}, sentence-transformers + FastAPI{', batching' if batch else ''}",
        lambda port, _: [*program, "--port", str(port)],
        "/classify",
        lambda row: {"prompt": row.text},
        lambda reply: reply["token"],
        dict(enumerate(read_manifest(model).task.labels)),
        environment={"SMALLFIRST_HOME": str(folder / "now" / "state")},
    )
    return {"alone": side}


def model_folder(folder: Path, label: str, name: str) -> Path:
    """Return the newest promoted model of a task."""
    runs = sorted((folder / label / "state" / "tasks" / f"bank-{name}").glob("*/promoted.json"))
    if not runs:
        sys.exit(f"{folder / label / name} has no promoted model")
    at = runs[-1].parent / name
    return at / "model" if (at / "model").is_dir() else at


def write_page(cells: dict[tuple[str, int], list[dict[str, Any]]], names: list[str], rounds: int) -> Iterator[str]:
    yield "# Words and encoders over HTTP, on two cores"
    yield ""
    yield f"{date.today()}, {len(os.sched_getaffinity(0))} cores of {processor()}. Banking77, {N_TRAIN} rows, short texts."
    yield f"{rounds} rounds of {', '.join(map(str, LEVELS.values()))} test rows at {', '.join(map(str, LEVELS))} clients, by"
    yield "`python -m benchmarks.serving.encoders`, which says how. requests/s: median of the rounds (least to most)."
    yield "Ours has a key and writes its ledger. The Router's accuracy is with the recorded large model's answers."
    yield ""
    heads = [f"{n} client{'s' if n > 1 else ''}, requests/s | p50 ms" for n in LEVELS]
    yield f"| server | {' | '.join(heads)} | accuracy | peak MB |"
    yield "|---" * (2 * len(LEVELS) + 3) + "|"
    for name in names:
        shown: list[str] = []
        found = [cell for level in LEVELS for cell in cells[name, level]]
        for level in LEVELS:
            rates = sorted(cell["requests_per_s"] for cell in cells[name, level])
            p50 = np.median([ms for cell in cells[name, level] for ms in cell["ms"]])
            shown += [f"{statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f})", f"{p50:.1f}"]
        n = sum(len(cell["ms"]) for cell in cells[name, 32][:1]) + sum(LEVELS[level] for level in (1, 8))
        right = sum(cells[name, level][0]["right"] for level in LEVELS)  # each round asks the same rows
        failed = sum(cell["failed"] for cell in found)
        shown.append(f"{wilson(right, n)} n={n}" + (f", {failed} failed" if failed else ""))
        yield f"| {name} | {' | '.join(shown)} | {max(cell['peak_mb'] for cell in found):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", type=Path, help="another checkout, served beside this one")
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    folder, trees = wanted.folder.resolve(), {"now": ROOT}
    if wanted.before:
        trees = {"before": wanted.before.resolve(), **trees}
    for label, tree in trees.items():
        prepare(folder, label, tree)
    groups = [ours(folder, label, tree, name) for name in LADDERS for label, tree in trees.items()]
    groups += [peer(folder, name, batch) for name in ("encoder", "tuned") for batch in (0, 32)]
    rows = [Row(row["text"], row["label"], "", ()) for row in read_lines(folder / "rows" / "test.jsonl")]
    random.Random(0).shuffle(rows)
    others = rows[-200:]
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(wanted.rounds):
        for sides in groups[number:] + groups[:number]:
            with started(sides["alone"], 32, folder, others[0]) as server:
                at = 0
                for level, n in LEVELS.items():
                    for side in sides.values():
                        cell = asyncio.run(
                            measure(server._replace(side=side), rows[at : at + n], others, clients=level)
                        )
                        cells.setdefault((side.name, level), []).append(cell)
                        say(
                            f"round {number + 1}, {side.name}, {level} clients: {cell['requests_per_s']:.0f} requests/s"
                        )
                    at += n
    names = [side.name for sides in groups for side in sides.values()]
    page = "\n".join(write_page(cells, names, wanted.rounds)) + "\n"
    (RESULTS / "encoder_serving.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
