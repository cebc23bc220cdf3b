"""A sentence encoder with a linear head over HTTP: ours alone, ours behind its Router with domain gate, and a peer.

    SMALLFIRST_DATA=… python -m benchmarks.serving.encoders FOLDER [--rounds 3] [--rows 300] [--peer PATH]

FOLDER holds what `encoders_ours fit` made. Test rows of Banking77, 1, 8 and 32 clients in a closed loop. Server and
clients share the cores. Sides are measured in turn, round by round; `--peer` is the folder in which
sentence-transformers is installed. Writes FOLDER/encoders.json after every cell and benchmarks/results/encoders.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.paths import RESULTS
from benchmarks.serving.encoders_ours import ENCODER, KEY, MODEL, rows
from benchmarks.serving.measure import measure, say, started
from benchmarks.serving.sides import Row, Side
from smallfirst.models.catalog import find_weights
from smallfirst.models.manifest import read_manifest
from smallfirst.stats.intervals import wilson

CLIENTS = (1, 8, 32)


def ours(folder: Path, way: str, engine: str, labels: Sequence[str]) -> Side:
    """Our server in one form."""
    program = [sys.executable, "-m", "benchmarks.serving.encoders_ours", str(folder), way, engine]
    return Side(
        f"{way}, {engine}",
        lambda port, _: [*program, str(port)],
        "/v1/chat/completions",
        lambda row: {"model": MODEL, "messages": [{"role": "user", "content": row.text}]},
        lambda reply: reply["choices"][0]["message"]["content"],
        {label: label for label in labels},
        headers={"Authorization": f"Bearer {KEY}"},
    )


def peer(folder: Path, place: str, labels: Sequence[str], *options: str) -> Side:
    """sentence-transformers behind FastAPI, on PyTorch."""
    program = [sys.executable, "-m", "benchmarks.peers.serve_sentence_transformers", str(folder)]
    program += [str(find_weights(ENCODER)), *options]
    return Side(
        f"sentence-transformers + FastAPI{', bf16' if options else ''}",
        lambda port, _: [*program, "--port", str(port)],
        "/classify",
        lambda row: {"text": row.text},
        lambda reply: reply["label"],
        {label: label for label in labels},
        environment={"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", "."), place])},
    )


def used(pid: int) -> float:
    """Processor seconds of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def page(cells: dict[str, list[dict[str, Any]]], sides: Sequence[str], n: int, folder: Path) -> str:
    """The result page."""
    check = json.loads((folder / "int8.json").read_text())
    rounds = max(map(len, cells.values()))
    lines = [
        "# A sentence encoder with a linear head over HTTP",
        "",
        f"2026-11-27, 2 shared cores of a Zen 5 with 24 GB, Python {platform.python_version()}, CTranslate2",
        f"{version('ctranslate2')}, torch {version('torch')}. MiniLM (22 M weights) with a linear head fitted on 2,000 rows",
        f"of Banking77; medians of at most {rounds} rounds of {n} official test rows for each number of clients. The clients run on",
        "the same two cores, and much other work ran on them too: compare rows with each other, and processor time before rates. `alone` and `routed` are our",
        "server with a key and a ledger, without and with a Router and its domain gate; `ctranslate2` reads in int8. Products",
        "have one thread (OMP_NUM_THREADS=1).",
        f"int8 was decided on {check['agreement']['n']} validation rows: {check['why']}.",
        "By `python -m benchmarks.serving.encoders`, which says how to run it.",
        "",
        "| server | clients | requests/s | CPU ms a request | p50 ms | p95 ms | accuracy | peak MB | start s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side in sides:
        for clients in CLIENTS:
            found = cells.get(f"{side}|{clients}")
            if not found:
                continue
            ms = sorted(one for cell in found for one in cell["ms"])
            right = wilson(found[0]["right"], len(found[0]["ms"]))
            numbers = (
                f"{statistics.median(cell['requests_per_s'] for cell in found):.0f}",
                f"{statistics.median(cell['cpu_ms'] for cell in found):.2f}",
                f"{statistics.median(ms):.1f}",
                f"{ms[int(0.95 * len(ms))]:.1f}",
                str(right),
                f"{max(cell['peak_mb'] for cell in found):.0f}",
                f"{statistics.median(cell['start_s'] for cell in found):.0f}",
            )
            lines.append(f"| {side} | {clients} | {' | '.join(numbers)} |")
    lines += ["", *_ratios(cells)]
    lines += ["", "Engines by themselves, in one process: [encoder_engines.md](encoder_engines.md)."]
    return "\n".join(lines) + "\n"


def _ratios(cells: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Processor time alone as a share of that behind the Router, and the rates the other way round."""
    found = []
    for clients in CLIENTS:
        routed, alone = (cells.get(f"{way}, ctranslate2|{clients}", []) for way in ("routed", "alone"))
        if routed and alone:
            cpu, rate = (
                [statistics.median(cell[key] for cell in side) for side in (routed, alone)]
                for key in ("cpu_ms", "requests_per_s")
            )
            found.append(
                f"- {clients} client{'s' * (clients > 1)}: {cpu[1] / cpu[0]:.2f}, rates {rate[0] / rate[1]:.2f}"
            )
    return [
        "Processor time of a request alone as a share of that behind the Router, and the share of the rates:",
        "",
        *found,
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--peer", default="")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new round after that many")
    wanted = parser.parse_args()
    labels = read_manifest(wanted.folder).task.labels
    test = [Row(e.text, str(e.answer), "", ()) for e in rows("test").examples]
    own, others = test[:: len(test) // wanted.rows][: wanted.rows], test[1 :: len(test) // wanted.rows]
    ways = [("alone", "ctranslate2"), ("routed", "ctranslate2"), ("alone", "pytorch")]
    sides = [ours(wanted.folder, way, engine, labels) for way, engine in ways]
    if wanted.peer:
        sides.append(peer(wanted.folder, wanted.peer, labels))
    path = wanted.folder / "encoders.json"
    cells: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    began = time.monotonic()
    for _ in range(wanted.rounds):
        for side in sides:
            if time.monotonic() - began > wanted.seconds:
                break
            with started(side, 1, wanted.folder, own[0]) as server:
                for clients in CLIENTS:
                    n = own[: max(60, wanted.rows // 4)] if clients == 1 else own
                    before = used(server.process.pid)
                    cell = asyncio.run(measure(server, n, others[:50], clients=clients))
                    asked = len(n) + 3 * clients  # with those that warm up, and about one more a client at the end
                    cell["cpu_ms"] = 1000 * (used(server.process.pid) - before) / asked
                    say(
                        f"{side.name}, {clients}: {cell['requests_per_s']:.0f}/s, {cell['cpu_ms']:.2f} CPU ms, right {cell['right']} of {len(n)}"
                    )
                    cells.setdefault(f"{side.name}|{clients}", []).append(cell)
                    path.write_text(json.dumps(cells))
    (RESULTS / "encoders.md").write_text(page(cells, [side.name for side in sides], wanted.rows, wanted.folder))


if __name__ == "__main__":
    main()
