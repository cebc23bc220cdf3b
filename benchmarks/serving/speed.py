"""Classification over HTTP, side by side in one run: ours, llama.cpp, vLLM's CPU build, transformers + FastAPI.

    python -m benchmarks.serving.speed --task TASK.yaml --home STATE_FOLDER --work FOLDER [--vllm PYTHON]
        [--llama-server BINARY] [--cores 0,1] [--rounds 3] [--rows 200] [--only NAME,…] [--quick]

TASK.yaml has a promoted small model in STATE_FOLDER that answers by code tokens; the same weights are served by all.
Peers with their own environments are left out unless named: `benchmarks/peers/serve_vllm.py` says how to
set up vLLM's. A test row is asked at most once per server, so no cache can contain it; each server and number of
clients gets the same rows. A round restarts each server, one at a time, and the order rotates from round to round;
vLLM, which compiles for a minute or more, is started once and paused by a signal while others are measured. Settings
of the peers are chosen before, on validation rows (`choice.py`).

Results are stored in FOLDER as they come, so an interrupted run continues; the page is written at the end. On two
cores choosing takes about five minutes (`--rounds 0` does only that) and three rounds ten.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from benchmarks.datasets import RESULTS
from benchmarks.serving.choice import choose, gguf_files, settings
from benchmarks.serving.measure import Server, Store, awake, measure, say, started
from benchmarks.serving.page import write_page
from benchmarks.serving.sides import Row, Side, llama_server, ours, own_home, transformers, vllm, xllamacpp
from smallfirst.models.manifest import Manifest, read_manifest

LEVELS = (1, 8, 32)


def read_rows(path: Path, model: Path, manifest: Manifest) -> list[Row]:
    """Return a JSON Lines file in an order drawn with a fixed seed, with prompts and their tokens."""
    from smallfirst.models.local.tokenizer import encode_prompt, load_tokenizer

    tokens, rows = load_tokenizer(model), []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = manifest.task.prompt(row["text"])
        ids = tuple(encode_prompt(tokens, prompt, manifest.max_tokens))
        rows.append(Row(row["text"], row["label"], prompt, ids))
    random.Random(0).shuffle(rows)
    return rows


def promoted_model(task: Path, home: Path) -> Path:
    """Return the folder of the task's newest promoted model."""
    from smallfirst.project.task_file import read_task_file

    runs = sorted((home / "tasks" / read_task_file(task).name).glob("*/promoted.json"))
    if not runs:
        sys.exit(f"{home} holds no promoted model of {task}")
    return runs[-1].parent / "model"


def code_texts(model: Path, manifest: Manifest) -> dict[Any, str]:
    """Return the label of each code token's text."""
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(model / "tokenizer.json"))
    return {
        tokens.decode([code]): label for code, label in zip(manifest.label_tokens, manifest.task.labels, strict=True)
    }


def all_sides(wanted: argparse.Namespace, model: Path, manifest: Manifest, store: Store) -> list[Side]:
    """Return all servers, peers with the chosen settings."""
    labels, files = code_texts(model, manifest), gguf_files(wanted.work)
    found = [ours(wanted.task, wanted.home, manifest)]
    file, options = settings(store, "xllamacpp", files)
    found.append(xllamacpp(file, wanted.cores, labels, *options))
    if wanted.llama_server:
        file, options = settings(store, "llama-server", files)
        found.append(llama_server(wanted.llama_server, file, wanted.cores, labels, *options))
    if wanted.vllm:
        _, options = settings(store, "vllm", files)
        found.append(vllm(wanted.vllm, model, wanted.cores, labels, *options))
    found.append(transformers(model, manifest, wanted.cores))
    found.append(transformers(model, manifest, wanted.cores, "--batch", "32"))
    return [side for side in found if not wanted.only or any(side.name.startswith(name) for name in wanted.only)]


def bound(model: Path, tokens: float, cores: Sequence[int]) -> dict[str, Any]:
    """What bound.py finds."""
    command = [sys.executable, "-m", "benchmarks.serving.bound", str(model), str(tokens)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores))}
    found: dict[str, Any] = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    return found


class Rounds:
    """Measures sides; pauses those that are slow to start instead of ending them."""

    def __init__(self, store: Store, others: Sequence[Row], stack: ExitStack) -> None:
        self.store, self.others, self._stack = store, others, stack
        self._kept: dict[str, Server] = {}

    def one_side(self, side: Side, number: int, rows: Sequence[Row]) -> None:
        """Measure and store what is missing of a side's round."""
        levels = [level for level in LEVELS if self.store.cell(side.name, level, number) is None]
        groups = [[level] for level in levels] if side.for_clients else [levels]
        n = len(rows) // len(LEVELS)
        for group in filter(None, groups):
            with self._running(side, group[-1]) as server:
                for level in group:
                    at = LEVELS.index(level) * n
                    cell = asyncio.run(measure(server, rows[at : at + n], self.others, clients=level))
                    self.store.keep(side.name, level, number, cell)
                    say(f"round {number + 1}, {side.name}, {level} clients: {cell['requests_per_s']:.1f} requests/s")

    def _running(self, side: Side, clients: int) -> AbstractContextManager[Server]:
        if not side.slow_to_start:
            return started(side, clients, self.store.folder, self.others[0])
        if side.name not in self._kept:
            begun = started(side, clients, self.store.folder, self.others[0])
            self._kept[side.name] = self._stack.enter_context(begun)
        return awake(self._kept[side.name])


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vllm")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--cores", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1])
    parser.add_argument("--rounds", type=int, default=3, help="0 only chooses the settings of the peers")
    parser.add_argument("--rows", type=int, default=200, help="for each number of clients in each round")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument(
        "--quick", action="store_true", help="one round of 16 rows, few settings, and no page in results/"
    )
    wanted = parser.parse_args()
    if wanted.quick:
        wanted.rounds, wanted.rows = 1, 16
    return wanted


def main() -> None:
    wanted = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on exit
    os.sched_setaffinity(0, wanted.cores)
    os.environ.pop("OMP_NUM_THREADS", None)
    model = promoted_model(wanted.task, wanted.home).resolve()
    manifest = read_manifest(model)
    if manifest.kind != "label_tokens":
        sys.exit(f"{model} does not answer by code tokens")
    wanted.work = wanted.work.resolve() / manifest.weights_fingerprint
    wanted.work.mkdir(parents=True, exist_ok=True)
    wanted.home = own_home(wanted.home, wanted.work / "home")
    from smallfirst.project.task_file import read_task_file

    data = read_task_file(wanted.task).data
    test, others = (read_rows(Path(path), model, manifest) for path in (data.test, data.validation))
    plan = {"weights": manifest.weights_fingerprint, "rows": wanted.rows, "cores": len(wanted.cores)}
    store = Store(wanted.work, plan, quick=wanted.quick)
    choose(wanted, model, code_texts(model, manifest), others, store)
    if not wanted.rounds:
        return
    say(f"load of the machine before the rounds: {os.getloadavg()[0]:.1f}; nothing else should run")
    n, began = wanted.rows * len(LEVELS), time.monotonic()
    if n * wanted.rounds > len(test):
        sys.exit(f"{wanted.rounds} rounds of {n} rows are more than the {len(test)} test rows")
    tokens = sum(len(row.ids) for row in test) / len(test)
    sides = all_sides(wanted, model, manifest, store)
    with ExitStack() as stack:
        rounds = Rounds(store, others, stack)
        for number in range(wanted.rounds):
            turn = number * 2 % len(sides)
            for side in sides[turn:] + sides[:turn]:
                rounds.one_side(side, number, test[number * n : (number + 1) * n])
            store.keep_bound(number, bound(model, tokens, wanted.cores))
    say(f"measured in {time.monotonic() - began:.0f} s")
    page = wanted.work / "quick.md" if wanted.quick else RESULTS / "serving_speed.md"
    write_page(page, store, [side.name for side in sides], LEVELS, tokens)
    say(f"wrote {page}")


if __name__ == "__main__":
    main()
