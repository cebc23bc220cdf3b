"""Record right and confidence of the linear model on MiniLM's vectors for `certificates_draws.py`.

    python -m benchmarks.routing.certificates_tables FOLDER [banking77 clinc150]

Fits the `encoder` candidate on the training rows of a set under $SMALLFIRST_DATA and writes FOLDER/SET.jsonl: a line for
each validation and test row. Nothing is tuned, so all these rows are unseen.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from smallfirst.data.sources.load import load_rows
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.tasks.classify import Classify

SETS = ("banking77", "clinc150")


def record(name: str, folder: Path) -> None:
    place = Path(os.environ["SMALLFIRST_DATA"]) / name
    train, *unseen = (load_rows(place / f"{part}.jsonl", folder=place) for part in ("train", "validation", "test"))
    labels = tuple(sorted({one.answer for one in train.examples}))
    fitted = LinearClassifier.fit("encoder", train, Classify(name=name, labels=labels))
    rows = [one for part in unseen for one in part.examples]
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as out:
        for one, scored in zip(rows, fitted.score([row.text for row in rows]), strict=True):
            best = int(np.argmax(scored.log_probabilities))
            said = {"key": one.key, "confidence": float(np.exp(scored.log_probabilities[best]))}
            out.write(json.dumps({**said, "correct": labels[best] == one.answer}) + "\n")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or SETS:
        record(name, place)
        print(name, flush=True)
