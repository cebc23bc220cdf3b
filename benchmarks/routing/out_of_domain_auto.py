"""Route requests of three tasks and open requests through `auto`; measure decisions, time and memory.

Called by out_of_domain.py; `python -m benchmarks.routing.out_of_domain_auto FOLDER KIND` times a saved selector in this
process, so modules needed only for fitting are imported in functions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.routing.auto import TaskSelector

TASKS = ("banking77", "snips_slots", "medquad_short")
OPEN = {"nq_open": "test", "ifeval": "test", "mt_bench": "test", "self_instruct_seed": "train"}
"""Open requests and the file of each set. They are used for fitting only by the kind that says so."""
KINDS = {
    "words": "words only",
    "encoder": "words, then the frozen encoder where words are undecided",
}
TIMED = 600
"""Requests asked one at a time."""


def requests() -> dict[str, list[str]]:
    """Test requests of every source."""
    found = {task: [e.text for e in rows(task)[2].examples] for task in TASKS}
    return found | {name: open_requests(name) for name in OPEN}


def rows(task: str) -> tuple[Dataset, Dataset, Dataset]:
    """Return training, selection and test rows of a task, split as every stage splits them."""
    from benchmarks.datasets import data_folder, task_file
    from smallfirst.project.project import Project

    parts = Project.read(task_file(task, data_folder(task))).rows
    return parts.train, parts.selection, parts.test


def open_requests(name: str) -> list[str]:
    from benchmarks.datasets import data_folder

    path = data_folder(TASKS[0]).parent / name / f"{OPEN[name]}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line.get("prompt") or line["question"] for line in lines]


def fit(kind: str, folder: Path) -> Path:
    """Return the folder of the selector's signatures, one per task, fitting missing ones."""
    from smallfirst.models.catalog import find_weights
    from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder
    from smallfirst.routing.domain import PROFILE_FILE, fit_task_profile

    place = folder / "auto" / kind
    encoder = None
    for task in TASKS:
        if (place / task / PROFILE_FILE).exists():
            continue
        if kind == "encoder":
            encoder = encoder or (DEFAULT_ENCODER, SentenceEncoder(find_weights(DEFAULT_ENCODER)))
        train, selection, _ = rows(task)
        fit_task_profile(train, selection, encoder=encoder).save(place / task)
    return place


def confusion(kind: str, folder: Path) -> dict[str, Any]:
    """Return by source how many requests went to each task or none, and how many needed a second look; store the result."""
    kept = folder / "auto" / f"{kind}.json"
    if not kept.exists():
        place = fit(kind, folder)
        front = TaskSelector.load({task: place / task for task in TASKS})
        counts: dict[str, Any] = {}
        for source, texts in requests().items():
            choices = [front.select(text) for text in texts]
            counts[source] = Counter(choice.task or "none" for choice in choices)
            counts[source]["second"] = sum(choice.by_states for choice in choices)
        kept.write_text(json.dumps(counts, indent=1), encoding="utf-8")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def serving(kind: str, folder: Path) -> dict[str, Any]:
    """Return time and memory of a selector in a fresh process; store the result."""
    kept = folder / "auto" / f"{kind}-serving.json"
    if not kept.exists():
        command = [sys.executable, "-m", "benchmarks.routing.out_of_domain_auto", str(folder), kind]
        ran = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        kept.write_text(ran.stdout, encoding="utf-8")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def measure(folder: Path, kind: str) -> None:
    """Print the figures that `serving` stores."""
    place = folder / "auto" / kind
    texts = [t for source in json.loads((folder / "auto" / "requests.json").read_text()).values() for t in source]
    texts = texts[:: -(-len(texts) // TIMED)]
    before = _memory_mb()
    front = TaskSelector.load({task: place / task for task in TASKS})
    front.select(texts[0])  # opens the encoder, if there is one
    wall, busy = [], []
    for text in texts:
        began, worked = time.perf_counter(), time.process_time()
        front.select(text)
        wall.append(1000 * (time.perf_counter() - began))
        busy.append(1000 * (time.process_time() - worked))
    print(
        json.dumps(
            {
                "n": len(texts),
                "wall_ms": np.quantile(wall, [0.5, 0.99]).tolist(),
                "busy_ms": np.quantile(busy, [0.5, 0.99]).tolist(),
                "imports_mb": before,
                "memory_mb": _memory_mb(),
                "torch": "torch" in sys.modules,
            }
        )
    )


def _memory_mb() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def page(folder: Path) -> list[str]:
    """Return the half of the result page about `auto`."""
    (folder / "auto").mkdir(parents=True, exist_ok=True)
    (folder / "auto" / "requests.json").write_text(json.dumps(requests()), encoding="utf-8")
    lines = []
    for kind, title in KINDS.items():
        counts = confusion(kind, folder)
        lines += [
            f"\n**{title[0].upper()}{title[1:]}**\n",
            f"| from | n | {' | '.join(TASKS)} | none | right | second look |",
        ]
        lines.append("|---" * (len(TASKS) + 5) + "|")
        lines += [_row(source, counts[source]) for source in counts]
    lines += [
        "\n| one request at a time | p50 ms | p99 ms | p50, p99 ms of processor | memory | PyTorch loaded |",
        "|---" * 6 + "|",
    ]
    for kind, title in KINDS.items():
        found = serving(kind, folder)
        wall, busy = found["wall_ms"], found["busy_ms"]
        memory = f"{found['memory_mb']:.0f} MB, {found['imports_mb']:.0f} of them imports"
        cells = (title, f"{wall[0]:.1f}", f"{wall[1]:.1f}", f"{busy[0]:.1f}, {busy[1]:.1f}", memory, found["torch"])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines


def _row(source: str, counts: dict[str, int]) -> str:
    from smallfirst.stats import intervals as stats

    cells = [counts.get(task, 0) for task in (*TASKS, "none")]
    right = stats.wilson(counts.get(source if source in TASKS else "none", 0), sum(cells))
    second = f"{counts['second'] / sum(cells):.0%}"
    return f"| {source} | {sum(cells)} | {' | '.join(map(str, cells))} | {right} | {second} |"


if __name__ == "__main__":
    measure(Path(sys.argv[1]), sys.argv[2])
