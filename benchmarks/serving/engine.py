"""Measure speed and agreement of label scoring in process with three matrix multiplications, side by side.

    nice python -m benchmarks.serving.engine accuracy MODEL_FOLDER VALIDATION.jsonl TEST.jsonl
    OMP_NUM_THREADS=2 python -m benchmarks.serving.engine speed MODEL_FOLDER TEST.jsonl

`transformers` is the model's own forward (rows padded), `packed` the same precision without padding and with packed
weights, `int8` multiplies in int8. Whether int8 is used is decided on the validation rows alone; the test
rows only report. Speed is measured on the first test texts in the order in which they come, batch by batch; the three
alternate, and medians are printed with the best run, since other work on the machine only slows a run down. Both
commands write `results/engine.json` and the page `results/engine.md` made of it.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.paths import RESULTS
from benchmarks.serving.scoring import matrix_rate
from smallfirst.models.batching import length_batches
from smallfirst.models.label_model import LabelModel
from smallfirst.models.local.int8_check import compare
from smallfirst.models.local.label_scorer import Engine, LabelScorer
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.models.protocol import Request
from smallfirst.stats.intervals import paired_difference, wilson

ENGINES: tuple[Engine, ...] = ("transformers", "packed", "int8")
BATCHES, CLIENTS, TURNS = (1, 8, 32), (1, 8, 32), 5
PAGE = RESULTS / "engine.md"
FIGURES = PAGE.with_suffix(".json")


def rows_of(path: Path, manifest: Manifest) -> tuple[list[str], list[int]]:
    """Texts and places of their labels."""
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    return [row["text"] for row in rows], [manifest.task.closed.index(row["label"]) for row in rows]


def loaded(folder: Path) -> dict[str, LabelScorer]:
    """The scorers that can be had here."""
    made = {name: LabelScorer.load(folder, read_manifest(folder), engine=name) for name in ENGINES}
    return {name: scorer for name, scorer in made.items() if scorer.engine == name}


def accuracy(folder: Path, validation: Path, test: Path) -> dict[str, Any]:
    """Decide on validation rows, then measure test rows."""
    manifest, scorers = read_manifest(folder), loaded(folder)
    texts, gold = rows_of(validation, manifest)
    read = {name: scorers[name].score(texts) for name in scorers if name != "transformers"}
    found: dict[str, Any] = {"checked": "int8 is not available on this processor"}
    if "int8" in read:
        check = compare(read["packed"], read["int8"], gold, manifest=manifest, rows=validation.name)
        found["checked"] = f"{'kept' if check.kept else 'not kept'}: {check.why} (n={check.agreement.n})"
    print(found["checked"], flush=True)
    texts, gold = rows_of(test, manifest)
    right: dict[str, list[bool]] = {}
    for name, scorer in scorers.items():
        logs = [row.log_probabilities for row in scorer.score(texts)]
        right[name] = [max(range(len(row)), key=row.__getitem__) == at for row, at in zip(logs, gold, strict=True)]
        share = wilson(sum(right[name]), len(gold))
        against = paired_difference(right[name], right["transformers"])
        found[name] = f"{share.value:.4f} [{share.low:.4f}, {share.high:.4f}] | {against}"
        print(name, found[name], flush=True)
    return found | {"n": len(gold)}


def timed(scorer: LabelScorer, encoded: list[list[int]], rows: int) -> float:
    """Rows/s in batches as they come."""
    began = time.perf_counter()
    for start in range(0, len(encoded), rows):
        batch = encoded[start : start + rows]
        lengths = [len(ids) for ids in batch]
        for chosen in length_batches(lengths, max_rows=scorer.batch_rows, max_tokens=scorer.batch_tokens):
            scorer._forward([batch[i] for i in chosen])
    return len(encoded) / (time.perf_counter() - began)


async def closed_loop(scorer: LabelScorer, texts: list[str], clients: int) -> tuple[float, float, float]:
    """Return requests/s, p50 and p99 in ms of clients in a closed loop, without HTTP."""
    model, waiting, took = LabelModel(scorer, scorer.manifest), iter(texts), list[float]()

    async def client() -> None:
        for text in waiting:
            began = time.perf_counter()
            await model.complete(Request.ask(text))
            took.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    rate = len(texts) / (time.perf_counter() - began)
    await model.aclose()
    took.sort()
    return rate, took[len(took) // 2], took[int(0.99 * (len(took) - 1))]


def speed(folder: Path, test: Path) -> dict[str, Any]:
    """Medians over turns."""
    scorers = loaded(folder)
    texts = rows_of(test, read_manifest(folder))[0][:256]
    any_one = next(iter(scorers.values()))
    encoded = any_one.encode(texts)
    tokens = sum(map(len, encoded)) / len(encoded)
    weights = sum(w.numel() for name, w in any_one.model.named_parameters() if "embed" not in name)
    peaks = [matrix_rate(1.0)]
    runs: dict[str, list[Any]] = {}
    for _ in range(TURNS):
        for rows in BATCHES:
            for name, scorer in scorers.items():
                runs.setdefault(f"{name}/{rows}", []).append(timed(scorer, encoded[: 16 + 5 * rows], rows))
        peaks.append(matrix_rate(1.0))
    for _ in range(3):
        for clients in CLIENTS:
            for name, scorer in scorers.items():
                measured = asyncio.run(closed_loop(scorer, texts[: 16 + 5 * clients], clients))
                runs.setdefault(f"{name}/{clients} clients", []).append(measured)
    peak = statistics.median(peaks)
    return {
        "runs": runs,
        "tokens": tokens,
        "weights": weights,
        "peak": peak,
        "bound": peak / (2 * weights * tokens),
        "machine": f"{machine()}, {torch.get_num_threads()} threads",
        "load": os.getloadavg()[0],
    }


def machine() -> str:
    """Return the processor's name, if the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def page(figures: dict[str, Any]) -> str:
    """Return the page of the results so far."""
    lines = ["# The in-process engine: speed and agreement", ""]
    for part in ("speed", "accuracy"):
        lines += [*globals()[f"{part}_lines"](figures[part]), ""] if part in figures else []
    return "\n".join(lines)


def accuracy_lines(found: dict[str, Any]) -> list[str]:
    """The part on answers."""
    table = [f"| {name} | {found[name]} |" for name in ENGINES if name in found]
    return [
        "## Answers",
        "",
        f"`{found['command']}`, {found['date']}. int8 on the validation rows, which alone decide:",
        f"{found['checked']}.",
        "",
        f"| engine | accuracy on the test rows [95 %], n={found['n']:,} | against transformers, paired |",
        "|---|---|---|",
        *table,
    ]


def speed_lines(found: dict[str, Any]) -> list[str]:
    """The part on speed."""
    runs, bound = found["runs"], found["bound"]
    lines = [
        "## Speed",
        "",
        f"`{found['command']}`, {found['date']}, {found['machine']}, load average {found['load']:.1f} (shared",
        f"machine). Prompts have {found['tokens']:.1f} tokens on average, {found['weights'] / 1e6:.1f} M weights stand",
        f"outside the embedding, and the bf16 matrix rate was {found['peak'] / 1e9:.0f} GFLOP/s: at most {bound:.0f}",
        "rows/s in bf16 if nothing else took time. Medians (best) of alternating runs.",
        "",
        "| engine | " + " | ".join(f"rows/s, batch {rows}" for rows in BATCHES) + " | of the bf16 bound, batch 32 |",
        "|---|" + "---|" * (len(BATCHES) + 1),
    ]
    for name in [name for name in ENGINES if f"{name}/1" in runs]:
        medians = [statistics.median(runs[f"{name}/{rows}"]) for rows in BATCHES]
        cells = [f"{m:.1f} ({max(runs[f'{name}/{rows}']):.1f})" for m, rows in zip(medians, BATCHES, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} | {medians[-1] / bound:.0%} |")
    lines += ["", "Closed loop through `LabelModel`, tokenising included, no HTTP, medians of three:", ""]
    lines += ["| engine | clients | requests/s | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    for clients in CLIENTS:
        for name in [name for name in ENGINES if f"{name}/1" in runs]:
            middle = [statistics.median(column) for column in zip(*runs[f"{name}/{clients} clients"], strict=True)]
            lines.append(f"| {name} | {clients} | " + " | ".join(f"{value:.1f}" for value in middle) + " |")
    return lines


def main() -> None:
    """Measure one part and write both files."""
    verb, paths = sys.argv[1], [Path(path) for path in sys.argv[2:]]
    found = accuracy(*paths) if verb == "accuracy" else speed(*paths)
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    found["command"] = " ".join(
        ["python -m benchmarks.serving.engine", verb, "MODEL_FOLDER", *(p.name for p in paths[1:])]
    )
    found["date"] = str(datetime.date.today())
    figures[verb] = found
    FIGURES.write_text(json.dumps(figures), encoding="utf-8")
    PAGE.write_text(page(figures), encoding="utf-8")
    print(page(figures))


if __name__ == "__main__":
    main()
