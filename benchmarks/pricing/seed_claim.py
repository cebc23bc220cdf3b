"""Is a small model five to ten times cheaper than a hosted one? Two recorded bills, six list prices, three utilisations.

    python -m benchmarks.pricing.seed_claim FOLDER --run banking       # smallfirst run on the set (invoices: half an hour)
    python -m benchmarks.pricing.seed_claim FOLDER --serve banking     # smallfirst serve, and its processor time a request
    python -m benchmarks.pricing.seed_claim FOLDER                     # write benchmarks/results/seed_claim.md

Sets: `banking` and `invoices`, with the answers, tokens and bills of the hosted models in SMALLFIRST_DATA. The large path is
replayed from them. Training and weights are kept in FOLDER/SET/.smallfirst.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.datasets import hosted_rows
from benchmarks.pricing import seed_claim_page
from smallfirst.paths import state_of
from smallfirst.pipeline import run as pipeline
from smallfirst.pipeline.large_model import recorded_answers
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file

RECORDED = {"banking": "hosted_banking77", "invoices": "hosted_invoices"}
TASKS = {
    "banking": """\
name: banking
about: You classify the messages of an online bank's customers by what they want.
kind: classify
data: {train: ../hosted_banking77/rows/train.jsonl, test: ../hosted_banking77/rows/test.jsonl}
ladder: [words, encoder]
large: {recorded: ../hosted_banking77/rows/recorded.jsonl}
gate: {accuracy_at_least: 0.90, not_worse_than_large_by: 0.01}
routing: {guarantee: {max_error: 0.05, confidence: 0.95}}
prices: {machine: {usd_per_hour: 0.10, utilisation: 0.3}}
""",
    "invoices": """\
name: invoices
kind: extract
about: Read an invoice, an e-mail or a plain text, and give its fields.
data: {train: ../hosted_invoices/rows/train.jsonl}
ladder: [tagger]
small: {encoder_training: {duration: 3ep, patience: 2, max_seq_tokens: 512}}
large: {recorded: ../hosted_invoices/rows/recorded.jsonl}
gate: {accuracy_at_least: 0.90, not_worse_than_large_by: 0.05}
routing: {guarantee: {max_error: 0.05, confidence: 0.95}}
prices: {machine: {usd_per_hour: 0.10, utilisation: 0.3}}
""",
}
"""Bars are set as a user would, before anything was measured. Invoices are split at random: known layouts."""
PORT, CLIENTS, ROUNDS, WARM_UP = 8137, 16, 5, 100
SERVE = "import sys; from smallfirst.cli.main import main; sys.argv[0] = 'smallfirst'; main()"


def run(folder: Path, name: str) -> None:
    """Run the set and keep how long it took."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    hosted_rows(RECORDED[name], folder / RECORDED[name])
    (place / "task.yaml").write_text(TASKS[name], encoding="utf-8")
    began = time.monotonic()
    summary, error = pipeline.try_run(read_task_file(place), progress=Progress(), despite_check=True)
    print(summary, error or "")
    (place / "run_minutes.json").write_text(json.dumps((time.monotonic() - began) / 60))


@contextmanager
def server(place: Path) -> Iterator[int]:
    """Serve the task; yield the process's id once it is ready."""
    command = [sys.executable, "-c", SERVE, "serve", str(place), "--port", str(PORT), "--replay-large"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def processor_s(pid: int) -> float:
    """Return user and system seconds of a process and its ended children, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def serve(folder: Path, name: str) -> None:
    """Ask the served task its test rows, in rounds, and keep processor seconds, routes and scores."""
    place = folder / name
    file = read_task_file(place)
    with state_of(file.folder):
        project = Project.read(file, Progress(quiet=True))
        test, task = project.rows.test.examples, project.task
        asyncio.run(recorded_answers(file, task, project.rows, progress=project.progress))
        run_folder = RunFolder.latest(name)
    asked = [(e, {"messages": [m.model_dump(include={"role", "content"}) for m in e.messages]}) for e in test]

    async def ask(model: str, rows: list[Any]) -> list[dict[str, Any]]:
        limit = asyncio.Semaphore(CLIENTS)
        async with aiohttp.ClientSession() as session:

            async def one(body: dict[str, Any]) -> dict[str, Any]:
                url = f"http://127.0.0.1:{PORT}/v1/chat/completions"
                async with limit, session.post(url, json={"model": model, **body}) as answer:
                    return await answer.json()

            return await asyncio.gather(*(one(body) for _, body in rows))

    found: dict[str, Any] = {"n_test": len(test), "run": str(run_folder.path.name)}
    with server(place) as pid:
        for model in (name, f"{name}-small"):
            asyncio.run(ask(model, asked[:WARM_UP]))
            busy, answers, size = [], [], len(asked) // ROUNDS
            for i in range(ROUNDS):
                before = processor_s(pid)
                answers += asyncio.run(ask(model, asked[i * size : (i + 1) * size]))
                busy.append((processor_s(pid) - before) / size)
            right = [
                task.score(e.golds, task.parse(a["choices"][0]["message"]["content"] or "")) >= task.pass_score
                for (e, _), a in zip(asked, answers, strict=False)
            ]
            routes = [a["smallfirst"]["route"] for a in answers]
            found[model] = {
                "n": len(answers), "right": sum(right), "busy_s": busy,
                "n_small": sum(route != "large" for route in routes),
                "certified": sum(a["smallfirst"]["certified"] for a in answers),
                "certified_wrong": sum(a["smallfirst"]["certified"] and not ok for a, ok in zip(answers, right, strict=True)),
            }  # fmt: skip
            print(model, found[model], flush=True)
    rows = project.rows
    found["rows"] = {part: len(getattr(rows, part)) for part in ("train", "selection", "calibration", "test")}
    (place / "served.json").write_text(json.dumps(found, indent=1))


def recorded(name: str) -> list[dict[str, Any]]:
    """Return the recorded answers of the rows that the page speaks of: Banking77's test rows, all training invoices."""
    part = "test" if name == "banking" else "train"
    root = Path(os.environ.get("SMALLFIRST_DATA", "../shared/datasets")) / RECORDED[name]
    with gzip.open(root / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--run", choices=TASKS)
    asked.add_argument("--serve", choices=TASKS)
    given = asked.parse_args()
    folder = given.folder.absolute()
    if given.run:
        return run(folder, given.run)
    if given.serve:
        return serve(folder, given.serve)
    return seed_claim_page.write({name: (recorded(name), folder / name) for name in TASKS})


if __name__ == "__main__":
    main()
