"""Compare base models for fine-tuning: the same rows of Restaurant-8k, settings chosen on validation rows.

    python -m benchmarks.accuracy.bases OUT BASE [BASE ...] [--method lora] [--rates 1e-4 3e-4] [--epochs 2] [--rows 1000 500]

BASE is a name of the catalogue or a folder (a GGUF file converted as `smallfirst models pull` does). Every rate is
trained from the start; the score after each epoch is the exact match on the validation rows. A line for each run is
added to OUT/runs.jsonl. Test rows are not read.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from benchmarks.accuracy.run import data_folder, task_file
from smallfirst.models.catalog import find_weights
from smallfirst.models.local.weights import release_memory
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.registry import runs
from smallfirst.training.config import TrainConfig
from smallfirst.training.events import EventLog
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import train

SET = "restaurant8k"
NEVER = 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("bases", nargs="+")
    parser.add_argument("--method", default="full")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4, 3e-4])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", nargs=2, type=int, default=[1000, 500], help="training and validation rows")
    wanted = parser.parse_args()
    project = Project.read(task_file(SET, data_folder(SET)), Progress())
    picked = random.Random(0)
    rows = project.rows
    validation = (*rows.selection.examples, *rows.calibration.examples)
    parts = [
        rows.train.subset("train", tuple(picked.sample(rows.train.examples, wanted.rows[0]))),
        rows.selection.subset("selection", tuple(picked.sample(validation, wanted.rows[1]))),
    ]
    recipe = TaskRecipe(project.task, *parts)
    for base in wanted.bases:
        for rate in wanted.rates:
            config = TrainConfig(method=wanted.method, duration=f"{wanted.epochs}ep", learning_rate=rate)
            folder = wanted.out / f"{Path(base).name}-{wanted.method}-{rate:g}-{wanted.rows[0]}x{wanted.epochs}"
            with runs.open_run("bases", folder.name, params={}) as tracked:
                weights = (base, find_weights(base))
                run = train(recipe, config, base=weights, tracked=tracked, folder=folder, save_every_s=NEVER)
            epochs = [e for e in EventLog(folder / "events.jsonl").read() if e.kind == "EPOCH_FINISHED"]
            line = {
                "base": Path(base).name,
                "method": wanted.method,
                "rate": rate,
                "minutes": round(run.seconds / 60, 2),
                "tokens_per_s": round(run.tokens_per_s),
                "n_train": len(parts[0]),
                "n": len(parts[1]),
                "curve": run.validation_curve,
                "events": [event.message for event in epochs],
                "at": time.strftime("%H:%M"),
            }
            print(json.dumps(line), flush=True)
            with (wanted.out / "runs.jsonl").open("a") as out:
                out.write(json.dumps(line) + "\n")
            release_memory()


if __name__ == "__main__":
    main()
