"""Train SmolLM2-135M with one and two workers: losses, rows/s, and what kill -9 of a worker costs.

    python -m benchmarks.training.workers FOLDER

Banking77 rows (SMALLFIRST_DATA), one thread a process, gloo. Sides: one process, two processes, two with FSDP2
(`--shard`), each the same steps from the same seed, in rounds one after another. Then two workers on Ray, one of which
is killed with SIGKILL half way: seconds lost, steps repeated, and whether the final weights equal those of the two that
were not disturbed. Results are kept in FOLDER, so it continues; writes benchmarks/results/workers.md.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.paths import RESULTS
from smallfirst.data.sources.load import load_rows
from smallfirst.files import sha256
from smallfirst.models.catalog import find_weights
from smallfirst.paths import home
from smallfirst.registry.runs import open_run
from smallfirst.tasks.classify import Classify
from smallfirst.training.config import TrainConfig
from smallfirst.training.distributed.work import write_work
from smallfirst.training.events import EventLog
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import Run

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
N_ROWS, N_SELECTION, STEPS, ROUNDS = 480, 24, 6, 3
SIDES = {"one": (1, False), "two": (2, False), "two, sharded": (2, True)}
WORKER = """
import sys, torch
from pathlib import Path
import torch.distributed as dist
from smallfirst.training.distributed.work import do_work_and_tell
torch.set_num_threads(1)
if sys.argv[3] != "1":
    dist.init_process_group("gloo", init_method=sys.argv[4], rank=int(sys.argv[2]), world_size=int(sys.argv[3]))
do_work_and_tell(Path(sys.argv[1]))
"""
RAY = """
import sys
from pathlib import Path
from smallfirst.training.distributed.on_ray import train_on_ray
train_on_ray(Path(sys.argv[1]), 2, on_step=lambda _: None, on_epoch=lambda *_: False, log=print)
"""


def prepare(folder: Path, config: TrainConfig, *, shard: bool, every_s: float) -> Path:
    """The folder with all that the processes are told."""
    data = Path(os.environ["SMALLFIRST_DATA"]) / "banking77"
    rows = load_rows(str(next(data.glob("train.*"))), max_rows=None)
    labels = rows.labels()
    train = rows.subset("train", rows.examples[:: len(rows) // N_ROWS][:N_ROWS])
    selection = rows.subset("selection", rows.examples[1 :: len(rows) // N_SELECTION][:N_SELECTION])
    recipe = TaskRecipe(Classify(name="banking77", labels=labels), train, selection)
    run_id = open_run("workers", folder.name).run_id
    write_work(folder, recipe, config, (BASE, find_weights(BASE)), run_id, shard=shard, save_every_s=every_s)
    return folder


def side(folder: Path, n: int) -> Run:
    """The run of `n` processes."""
    meeting = f"file://{folder}/meeting-{time.time_ns()}"
    commands = [[sys.executable, "-c", WORKER, str(folder), str(rank), str(n), meeting] for rank in range(n)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait() for process in processes] == [0] * n
    return Run.load(folder / "run.json")


def killed(folder: Path) -> dict[str, Any]:
    """What a kill of the second worker costs on Ray."""
    began = time.monotonic()
    driver = subprocess.Popen([sys.executable, "-c", RAY, str(folder)])
    log, progress = EventLog(folder / "events.jsonl"), folder / "workers" / "progress.json"
    while not any(event.kind == "CHECKPOINT_SAVED" for event in log.read()) or _step(progress) < STEPS // 2:
        assert driver.poll() is None, "the driver ended"
        time.sleep(0.2)
    at, victim = _step(progress), _workers(driver.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    dead = time.monotonic()
    while not (resumed := [event for event in log.read() if event.kind == "RESUMED"]):
        assert driver.poll() is None, "the driver ended"
        time.sleep(0.2)
    back = time.monotonic() - dead
    assert driver.wait() == 0
    first = int(resumed[0].message.split()[2])
    return {"at": at, "from": first, "repeated": at - first, "back_s": back, "whole_s": time.monotonic() - began}


def _step(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["step"])
    except (OSError, ValueError):
        return 0


def _workers(driver: int) -> list[int]:
    """Ray's training workers whose cluster the driver started."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker") and driver in _ancestors(place):
                found.append(int(place.name))
        except OSError:
            continue
    return sorted(found)


def _ancestors(place: Path) -> set[int]:
    found: set[int] = set()
    while place.name not in ("0", "1"):
        parent = (place / "stat").read_text().rsplit(")", 1)[1].split()[1]
        found.add(int(parent))
        place = Path("/proc") / parent
    return found


def weights(run: Run) -> str:
    return sha256(run.folder / "model.safetensors")


def main() -> None:
    place = Path(sys.argv[1]).absolute()
    place.mkdir(parents=True, exist_ok=True)
    home()
    load = os.getloadavg()[0]
    config = TrainConfig(duration=f"{STEPS}ba", learning_rate=2e-4, batch_tokens=1024, seed=0)
    runs: dict[str, list[Run]] = {name: [] for name in SIDES}
    for round_ in range(ROUNDS):
        for name, (n, shard) in SIDES.items():
            folder = place / f"{name.replace(', ', '-')}-{round_}"
            if not (folder / "run.json").is_file():
                side(prepare(folder, config, shard=shard, every_s=1e9), n)
            runs[name].append(Run.load(folder / "run.json"))
            print(name, round_, f"{runs[name][-1].tokens_per_s:.0f} tokens/s", flush=True)
    lost, kept = place / "killed", place / "killed.json"
    if not kept.is_file():
        kept.write_text(json.dumps(killed(prepare(lost, config, shard=False, every_s=0))))
    told = json.loads(kept.read_text())
    told["equal"] = weights(Run.load(lost / "run.json")) == weights(runs["two"][0])
    write(runs, told, config, load)


def write(runs: dict[str, list[Run]], lost: dict[str, Any], config: TrainConfig, load: float) -> None:
    """The result as a page."""
    alone = runs["one"][0].loss_curve
    lines = [
        PAGE.format(today=date.today(), steps=STEPS, n=N_ROWS, tokens=config.batch_tokens, rounds=ROUNDS, load=load)
    ]
    for name, of in runs.items():
        ratios = [run.tokens_per_s / one.tokens_per_s for run, one in zip(of, runs["one"], strict=True)]
        away = max(abs(a - b) / b for (_, a), (_, b) in zip(of[0].loss_curve, alone, strict=True))
        rate = statistics.median(run.tokens_per_s for run in of)
        low, high = min(ratios), max(ratios)
        cells = (
            name,
            f"{rate:.0f}",
            f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})",
            f"{100 * away:.2f} %",
        )
        lines.append(f"| {' | '.join(cells)} | {of[0].loss_curve[0][1]:.4f} → {of[0].loss_curve[-1][1]:.4f} |\n")
    lines.append(KILL.format(**lost, said="equal" if lost["equal"] else "do not equal"))
    (RESULTS / "workers.md").write_text("".join(lines), encoding="utf-8")


PAGE = """# One worker and two

`python -m benchmarks.training.workers FOLDER`, {today}, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11. SmolLM2-135M-Instruct, every
weight trained, {n} rows of Banking77, {steps} steps of {tokens} tokens, one thread a process, gloo. {rounds} round(s) of all sides,
one after another; load average {load:.1f} when it began. The two cores are two threads of one physical core, so two processes cannot be twice as fast here.

| processes | tokens/s, median | over one process | loss, largest distance from one process | loss, first → last step |
|---|---|---|---|---|
"""
KILL = """
In fp32 the gradient of two processes, sharded or not, equals that of one within 1e-4 (`tests/training/test_causal_lm_gradients.py`); here weights are
bfloat16, so sums in another order differ in the third digit.

## kill -9 of a worker

Two workers on Ray, a checkpoint as often as 3 % of the time allows. The second worker was killed after step {at}: training stood for
{back_s:.0f} s (Ray notices, starts two new workers, they load PyTorch and the model), {repeated} steps were done again, from step {from}. The final
weights {said} those of two processes that were not disturbed, byte for byte.

What was not measured: several machines, GPUs, NCCL.
"""


if __name__ == "__main__":
    main()
