"""Measure the minutes of training until Banking77 validation accuracy reaches 0.90, and the test accuracy of the result.

    python -m benchmarks.training.minutes OUT_FOLDER [--epochs 2] [--frozen 0] [--rate 2e-4]

The accuracy is measured after each epoch on the 1,003 validation rows; the time includes training and this, not
loading. The learning rate falls over the epochs asked for. Test rows are read once, at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.accuracy.run import data_folder
from smallfirst.data.sources.load import load_rows
from smallfirst.models.catalog import find_weights
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.manifest import read_manifest
from smallfirst.registry import runs
from smallfirst.stats import intervals as stats
from smallfirst.tasks.classify import Classify
from smallfirst.training.config import TrainConfig
from smallfirst.training.events import EventLog
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import train

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BAR = 0.90


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--frozen", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-4)
    wanted = parser.parse_args()
    source = data_folder("banking77")
    rows = {part: load_rows(source / f"{part}.jsonl") for part in ("train", "validation", "test")}
    labels = tuple(sorted({example.answer for example in rows["train"].examples}))
    task = Classify(name="minutes", labels=labels, about="Messages of an online bank's customers.")
    config = TrainConfig(duration=f"{wanted.epochs}ep", frozen_layers=wanted.frozen, learning_rate=wanted.rate)
    with runs.open_run("minutes", wanted.out.name, params={}) as tracked:
        recipe = TaskRecipe(task, rows["train"], rows["validation"])
        run = train(recipe, config, base=(SMALL, find_weights(SMALL)), tracked=tracked, folder=wanted.out)
    began = None
    for event in EventLog(wanted.out / "events.jsonl").read():
        if event.kind == "TRAIN_STARTED":
            began = event.at
        if event.kind == "EPOCH_FINISHED":
            print(f"{began} to {event.at}: {event.message}")
    print(f"{run.seconds / 60:.1f} min, {run.tokens_per_s:.0f} tokens/s, {run.validation_curve}; the bar is {BAR}")
    scorer = LabelScorer.load(run.folder, read_manifest(run.folder))
    scored = scorer.score([example.text for example in rows["test"].examples])
    best = [task.closed[max(range(len(labels)), key=s.log_probabilities.__getitem__)] for s in scored]
    right = [a == example.answer for a, example in zip(best, rows["test"].examples, strict=True)]
    found = stats.wilson(sum(right), len(right))
    print(f"test: {found.value:.4f} [{found.low:.3f}, {found.high:.3f}] n={len(right)}")


if __name__ == "__main__":
    main()
