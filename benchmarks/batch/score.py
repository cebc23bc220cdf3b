"""Score rows in bulk: rows a second against a plain loop, what kill -9 costs, and memory by number of rows.

    python -m benchmarks.batch.score FOLDER [WEIGHTS]

The rows are CLINC150's (`SMALLFIRST_DATA`), the model its words + linear candidate: FOLDER/clinc150 is made and promoted
first, if it is missing. With WEIGHTS, a folder of a causal model, one read at one position for the 151 labels is measured
on 500 of these rows as well; it is not trained, so its answers mean nothing and its work is the same. Every side is a process of its own and is timed from its start to its end. Writes
benchmarks/results/batch.md.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow.parquet as pq

from benchmarks.paths import RESULTS, SETS
from smallfirst.errors import RegistryError
from smallfirst.project.task_file import read_task_file
from smallfirst.registry import versions

RESULT = RESULTS / "batch.md"
N_ROWS, N_LANGUAGE, ROUNDS = 20_000, 500, 3
MEMORY = {20_000: 20_000, 200_000: 20_000, 1_000_000: 2_000}
"""Rows, and how many of them are different."""
LOOP = """
import json, sys
from smallfirst.deployment.predictor import load
texts = [json.loads(line)["text"] for line in open(sys.argv[2])]
with load(sys.argv[1]) as model:
    for start in range(0, len(texts), 1000):
        model.predict(texts[start : start + 1000])
"""


class Run(NamedTuple):
    """One process from start to end."""

    wall_s: float
    cpu_s: float
    """Of the process alone, without its children."""
    peak_mb: float


def process(*arguments: object) -> Run:
    """Run a program of Python. Raise RuntimeError if it fails."""
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(child.stderr.read().decode()[-2000:] if child.stderr else "")
    return Run(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def command(task: Path, rows: Path, out: Path, *options: object) -> list[object]:
    """The arguments of `smallfirst score`."""
    return ["-m", "smallfirst.cli.main", "score", task, rows, "--out", out, "--keep", "id", *options]


def texts() -> list[str]:
    """The different texts of CLINC150, in a fixed random order."""
    found: dict[str, None] = {}
    for part in ("train", "validation", "test"):
        lines = (Path(os.environ["SMALLFIRST_DATA"]) / "clinc150" / f"{part}.jsonl").read_text("utf-8").splitlines()
        found.update(dict.fromkeys(json.loads(line)["text"] for line in lines))
    every = [*found]
    random.Random(7).shuffle(every)
    return every


def write_rows(path: Path, every: list[str], n: int, different: int) -> Path:
    """Write n rows; beyond the set's own texts a number makes them different."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            k = i % different
            text = every[k % len(every)] + (f" {k // len(every)}" if k >= len(every) else "")
            file.write(json.dumps({"id": i, "text": text}) + "\n")
    return path


def make_task(folder: Path) -> Path:
    """CLINC150 with words + linear as champion; made once."""
    task = folder / "clinc150"
    if not (task / "task.yaml").is_file():
        task.mkdir(parents=True)
        for part in ("train", "validation", "test"):
            shutil.copy(Path(os.environ["SMALLFIRST_DATA"]) / "clinc150" / f"{part}.jsonl", task)
        text = (SETS / "clinc150.yaml").read_text("utf-8")
        kept = text[: text.index("\nsmall:")] + "\nladder: [words]\ngate: {accuracy_at_least: 0.6}\n"
        more = "routing: {guarantee: {max_error: 0.05}}\n" + text[text.index("register_to:") :]
        (task / "task.yaml").write_text(kept + more, "utf-8")
    try:
        versions.resolve(f"{read_task_file(task).register_to}@champion")
    except RegistryError:
        process("-m", "smallfirst.cli.main", "run", task)
    return task


def make_model(weights: Path, folder: Path) -> Path:
    """The weights as a classifier of CLINC150's labels; made once."""
    from smallfirst.models.local.label_tokens import choose_label_tokens
    from smallfirst.models.local.weights import load_causal
    from smallfirst.models.manifest import Manifest, write_manifest
    from smallfirst.project.project import Project

    made = folder / "language"
    if not (made / "smallfirst.json").is_file():
        task = Project.read(read_task_file(folder / "clinc150")).task
        shutil.copytree(weights, made, dirs_exist_ok=True)
        codes = choose_label_tokens(task.closed, load_causal(weights)[1])
        write_manifest(made, Manifest(kind="label_tokens", task=task, label_tokens=codes, base=weights.name))
    return made


def answers(out: Path) -> list[tuple[int, int, str]]:
    """Row, id and answer of every row, in the order of the parts."""
    tables = [pq.read_table(path, columns=["row", "id", "answer"]) for path in sorted(out.glob("part-*.parquet"))]
    return [(row["row"], row["id"], row["answer"]) for table in tables for row in table.to_pylist()]


def killed(
    arguments: list[object], out: Path, shares: tuple[float, ...], n_parts: int, *, workers: bool
) -> Counter[str]:
    """Run until done; once a share of the parts is written, kill a worker, or the process itself, which runs again."""
    found: Counter[str] = Counter()
    todo = list(shares)
    while True:
        child = psutil.Popen(
            [sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while child.poll() is None:
            time.sleep(0.02)
            if todo and len(list(out.glob("part-*.parquet"))) >= todo[0] * n_parts:
                victims = [child]
                if workers:
                    victims = [one for one in child.children(recursive=True) if "MapWorker" in " ".join(_line(one))]
                if victims:
                    victims[0].kill()
                    found["killed"] += 1
                    todo.pop(0)
        found["starts"] += 1
        if child.returncode == 0:
            return found
        if child.returncode != -9:
            raise RuntimeError(f"{arguments}: ended with {child.returncode}")


def _line(one: psutil.Process) -> list[str]:
    try:
        return list(one.cmdline())
    except psutil.Error:
        return []


def check(got: list[tuple[int, int, str]], want: list[tuple[int, int, str]]) -> dict[str, int]:
    """Rows lost, rows that are there twice, and answers that differ."""
    rows, right = Counter(row for row, _, _ in got), dict((row, rest) for row, *rest in want)
    return {
        "lost": len(right) - len(rows),
        "doubled": sum(n - 1 for n in rows.values()),
        "other answers": sum(right.get(row) != rest for row, *rest in got),
    }


def rates(task: Path, rows: Path, n: int, folder: Path, sides: dict[str, list[object]]) -> dict[str, list[Run]]:
    """Each side in each round, one after the other."""
    found: dict[str, list[Run]] = {side: [] for side in sides}
    for i in range(ROUNDS):
        for side, options in sides.items():
            out = folder / f"{side.replace(' ', '-')}-{i}-{n}"
            shutil.rmtree(out, ignore_errors=True)
            loop = ["-c", LOOP, options[0] if options else task, rows]
            arguments = loop if side == "plain loop" else command(task, rows, out, *options)
            found[side].append(process(*arguments))
            print(side, n, found[side][-1], flush=True)
    return found


def main(folder: Path, language: Path | None) -> None:
    """Measure what is missing in FOLDER/figures.json, and write the page."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["SMALLFIRST_HOME"] = str((folder / "state").absolute())
    figures_file = folder / "figures.json"
    figures: dict[str, Any] = json.loads(figures_file.read_text()) if figures_file.is_file() else {}
    task, every = make_task(folder), texts()
    rows = write_rows(folder / "rows.jsonl", every, N_ROWS, N_ROWS)
    small: list[object] = ["--model", "small"]

    def measured(name: str, measure: Any) -> Any:
        if name not in figures:
            figures[name] = measure()
            figures_file.write_text(json.dumps(figures, indent=1))
            RESULT.write_text("\n".join(page(figures)) + "\n", "utf-8")
        return figures[name]

    sides = {"plain loop": [], "score": small, "score, Router": [], "score, 2 workers": [*small, "--workers", 2]}
    measured("rates", lambda: rates(task, rows, N_ROWS, folder, sides))
    want = answers(folder / f"score-0-{N_ROWS}")
    for name, options, workers in (("process", small, False), ("worker", [*small, "--workers", 2], True)):

        def kill(name: str = name, options: list[object] = options, workers: bool = workers) -> dict[str, int]:
            out = folder / f"killed-{name}"
            shutil.rmtree(out, ignore_errors=True)
            arguments = command(task, rows, out, *options, "--part-rows", 500)
            return killed(arguments, out, (0.3, 0.6), N_ROWS // 500, workers=workers) | check(answers(out), want)

        measured(f"killed {name}", kill)
    for n, different in MEMORY.items():

        def memory(n: int = n, different: int = different) -> Run:
            out = folder / f"memory-{n}"
            shutil.rmtree(out, ignore_errors=True)
            path = write_rows(folder / f"rows-{n}.jsonl", every, n, different)
            return process(*command(task, path, out, *small))

        measured(f"memory {n}", memory)
    if language is not None:
        few, model = write_rows(folder / "few.jsonl", every, N_LANGUAGE, N_LANGUAGE), make_model(language, folder)
        two: dict[str, list[object]] = {"plain loop": [model], "score": ["--model", model]}
        measured("language", lambda: rates(task, few, N_LANGUAGE, folder, two))


def _rows(runs: dict[str, list[Any]], n: int) -> list[str]:
    base = [n / run[0] for run in runs["plain loop"]]
    lines = [
        "| side | rows/s, median [least, most] | against the loop beside it | processor s | peak MB |",
        "|---|---|---|---|---|",
    ]
    for side, found in runs.items():
        rate = [n / run[0] for run in found]
        ratio = [one / loop for one, loop in zip(rate, base, strict=True)]
        cells = [
            f"{statistics.median(x):{f}} [{min(x):{f}}, {max(x):{f}}]" for x, f in ((rate, ",.0f"), (ratio, ".2f"))
        ]
        cpu, peak = (statistics.median(run[i] for run in found) for i in (1, 2))
        lines.append(f"| {side} | {cells[0]} | {cells[1]} | {cpu:.1f} | {peak:,.0f} |")
    return lines


def page(figures: dict[str, Any]) -> list[str]:
    """The lines of the results page."""
    lines = [
        "# Scoring in bulk",
        "",
        "`python -m benchmarks.batch.score FOLDER [WEIGHTS]`, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11, 2026-11-27,",
        "OMP_NUM_THREADS=1, beside a training run (load average 2 to 3): take the ratios and the processor seconds. Each side is one process from its start to",
        "its end (imports, loading, reading, answering, writing); sides alternate in each of 3 rounds.",
        "",
        f"## Rows a second: {N_ROWS:,} texts of CLINC150, words + linear (151 labels)",
        "",
        *_rows(figures["rates"], N_ROWS),
        "",
        "The plain loop is `load(TASK).predict` on a list that is in memory, and writes nothing. Processor seconds are those of the",
        "process itself, without Ray's workers. Two workers have one physical core between them here, and Ray's start is in",
        "their time: this says what Ray costs, not what it brings on more cores.",
        "",
        "## Killed with SIGKILL, twice in each run, parts of 500 rows",
        "",
        "| killed | kills | starts of the command | rows lost | rows doubled | answers that differ from an undisturbed run |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("process", "worker"):
        f = figures.get(f"killed {name}", Counter())
        what = "the process itself" if name == "process" else "a worker of two on Ray"
        lines.append(
            f"| {what} | {f['killed']} | {f['starts']} | {f['lost']} | {f['doubled']} | {f['other answers']} of {N_ROWS:,} |"
        )
    lines += ["", "## Peak memory of the process", "", "| rows | different | peak MB | wall s |", "|---|---|---|---|"]
    for n, different in MEMORY.items():
        if run := figures.get(f"memory {n}"):
            lines.append(f"| {n:,} | {different:,} | {run[2]:,.0f} | {run[0]:,.0f} |")
    if "language" in figures:
        lines += [
            "",
            f"## {N_LANGUAGE:,} of these texts, SmolLM2-135M read at one position (not trained: the same work)",
            "",
        ]
        lines += _rows(figures["language"], N_LANGUAGE)
        n = len(figures["language"]["score"])
        lines += [
            "",
            f"Rounds: {n}. Equal processor seconds mean equal work; with one round the ratio of times is the machine's other load.",
        ]
    return lines


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
