"""Words on small samples: a logistic regression, a linear SVM, and the one of the two that a run keeps.

    python -m benchmarks.accuracy.words [--draws 3]

Plain draws of the training rows of Banking77, CLINC150 (in scope) and the intents of xSID; right on at most 1,500 test rows. The one
kept is right more often out of fold, of equals the regression, as `smallfirst.path.candidates.linear` chooses.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from benchmarks.datasets import data_folder
from smallfirst.data.dataset import Dataset
from smallfirst.data.sources.load import load_rows
from smallfirst.measuring.out_of_fold import folds_of
from smallfirst.models.linear.classifier import Estimator, LinearClassifier
from smallfirst.tasks.classify import Classify

ESTIMATORS: tuple[Estimator, ...] = ("logistic_regression", "linear_svm")
CASES = (
    ("xsid", "en.valid", "en.test", (150, 300)),
    ("banking77", "train", "test", (500, 1500)),
    ("clinc150", "train", "test", (600, 1500)),
)


def rows_of(file: Path) -> Dataset:
    read = load_rows(file)
    return read.subset(file.stem, tuple(example for example in read.examples if example.answer != "oos"))


def right(model: LinearClassifier, rows: Dataset, task: Classify) -> list[bool]:
    scored = model.score([example.text for example in rows.examples])
    best = (task.labels[int(np.argmax(row.log_probabilities))] for row in scored)
    return [answer == example.answer for answer, example in zip(best, rows.examples, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    print("| set | rows | draw | logistic regression | linear SVM | kept |\n|---|---|---|---|---|---|")
    means: list[list[float]] = []
    for name, train, test, sizes in CASES:
        pool, held = (rows_of(data_folder(name) / f"{part}.jsonl") for part in (train, test))
        held = held.subset("test", held.examples[:1500])
        task = Classify(name=name, labels=tuple(pool.labels()))
        for n in sizes:
            for draw in range(options.draws if n < len(pool) else 1):
                rows = pool.subset("sample", tuple(random.Random(draw).sample(pool.examples, n)))
                folds, by = folds_of(rows, 5), {}
                for one in ESTIMATORS:
                    fitted = [(LinearClassifier.fit("words", f.rest, task, estimator=one), f.held) for f in folds]
                    by[one] = sum(sum(right(model, part, task)) for model, part in fitted)
                found = [
                    right(LinearClassifier.fit("words", rows, task, estimator=one), held, task) for one in ESTIMATORS
                ]
                kept = ESTIMATORS.index(max(ESTIMATORS, key=lambda one: by[one]))
                means.append([float(np.mean(answers)) for answers in (*found, found[kept])])
                cells = " | ".join(f"{value:.3f}" for value in means[-1][:2])
                print(f"| {name} | {n:,} | {draw} | {cells} | {means[-1][2]:.3f} ({ESTIMATORS[kept]}) |", flush=True)
    better, worse = (sum(sign * (kept - regression) > 0 for regression, _, kept in means) for sign in (1, -1))
    mean = " / ".join(f"{value:.3f}" for value in np.mean(means, axis=0))
    print(
        f"\nMean of {len(means)} samples: {mean}; the one kept is better than the regression in {better}, worse in {worse}."
    )


if __name__ == "__main__":
    main()
