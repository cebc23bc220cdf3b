"""Redraw the rows of the whole way 200 times: is what the certificate promises kept?

    python -m benchmarks.serving.takeover_redraws FOLDER [--draws 200] [--rows 3000]

Each time all 13,083 recorded requests are shuffled: the first ROWS train, choose and certify a linear model on the
encoder's vectors (the candidate `encoder` on vectors that are computed once), the next 3,000 are live traffic, and all
that were not learnt from are the truth. Right is what the hosted model answered. FOLDER/redraws-ROWS.json holds a line
for each draw; the page gives medians, and clopper_pearson of the broken draws.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.routing.certificates import one_stage
from benchmarks.routing.own_refused import StoredEncoder
from benchmarks.serving.takeover_upstream import recorded
from smallfirst.models.linear.classifier import INVERSE_REGULARIZATION
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.threshold_search import search_cascade

PROMISE = Guarantee(max_error=0.05)
LIVE = 3_000
TRAIN, VALIDATION, SELECTION = 0.6, 0.2, 0.2
"""Shares of the rows that train and validate; share of the validation rows that chooses and does not certify."""


def answers(confidence: np.ndarray, right: np.ndarray) -> CalibrationSet:
    """Return rows as the certificate reads them; the large model is right by definition."""
    always = np.ones(len(right), dtype=bool)
    return one_stage(confidence, right, asked=always, large_right=always, judged_by="large")


def draw(x: np.ndarray, said: np.ndarray, rng: np.random.Generator, n_rows: int) -> dict[str, float | bool]:
    order = rng.permutation(len(said))
    rows, rest = order[:n_rows], order[n_rows:]
    ends = [int(TRAIN * n_rows), int((TRAIN + VALIDATION) * n_rows)]
    train, validation, test = np.split(rows, ends)
    model = LogisticRegression(C=INVERSE_REGULARIZATION["encoder"], max_iter=200).fit(x[train], said[train])

    def judged(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities = model.predict_proba(x[part])
        return probabilities.max(axis=1), model.classes_[probabilities.argmax(axis=1)] == said[part]

    chooses = rng.random(len(validation)) < SELECTION
    own, selection = (answers(*judged(validation[part])) for part in (~chooses, chooses))
    found = search_cascade(replace(own, selection=selection), PROMISE)
    threshold = found.thresholds[-1]
    confidence, right = judged(rest)
    kept = confidence >= threshold
    live = kept[:LIVE]
    return {
        "issued": bool(threshold <= 1),
        "share": float(live.mean()),
        "differs": float((~right[:LIVE][live]).mean()) if live.any() else 0.0,
        "share_of_all": float(kept.mean()),
        "differs_of_all": float((~right[kept]).mean()) if kept.any() else 0.0,
        "agreement_alone": float(right.mean()),
        "test_rows": len(test),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--rows", type=int, default=3_000)
    arguments = parser.parse_args()
    rows = recorded("train") + recorded("test")
    x = StoredEncoder(arguments.folder / "vectors.npz").embed([row["text"] for row in rows])
    said = np.array([row["answer"] for row in rows])
    found = []
    for number in range(arguments.draws):
        found.append(draw(x, said, np.random.default_rng(number), arguments.rows))
        if number % 20 == 19:
            print(number + 1, json.dumps(found[-1]), flush=True)
        (arguments.folder / f"redraws-{arguments.rows}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
