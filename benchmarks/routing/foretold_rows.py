"""How often the rows that are asked for decide, beside the chance that was said with them.

    SMALLFIRST_DATA=DIR python -m benchmarks.routing.foretold_rows FOLDER --tables     # right and confidence by row
    python -m benchmarks.routing.foretold_rows FOLDER [--draws 400]                    # one model: test, calibration
    SMALLFIRST_DATA=DIR python -m benchmarks.routing.foretold_rows FOLDER --trained    # rows split, models fitted anew

A table is the truth. Rows are drawn from it with replacement, the gate or the certificate is asked, and where it says no
the rows that are foretold are drawn as well and it is asked again. Bars lie around the truth, evenly spaced, as nobody
knows beforehand where it lies. With `--trained` the rows come from a pool without replacement, are split as a run does,
and the model is fitted on the larger part before it is asked again. Writes benchmarks/results/foretold_rows.md.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np

from smallfirst.models.linear.classifier import INVERSE_REGULARIZATION, fit_logistic_regression
from smallfirst.models.linear.tfidf import TfidfFeatures

RESULT = Path(__file__).parents[1] / "results" / "foretold_rows.md"

SETS = {"banking77": "words", "clinc150": "words", "tool_calls": "words", "clinc150 MiniLM": "encoder"}
"""Pools with the features of their model."""
N_TRAINED, MOST_ROWS = 1000, 8000
"""Rows that a table's model is fitted on, and rows of a table."""


def pool(name: str) -> tuple[list[str], list[str]]:
    """Return the texts and labels of all splits of a set, in an order of chance."""
    place = Path(os.environ["SMALLFIRST_DATA"]) / name.split()[0]
    rows: list[tuple[str, str]] = []
    for path in sorted(place.glob("*.jsonl*")):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for one in map(json.loads, lines):
                if "request" in one:
                    told = [m["content"] or "" for m in one["request"]["messages"] if m["role"] != "system"]
                    calls = one["response"]["choices"][0]["message"].get("tool_calls")
                    rows.append((" ".join(told[-2:]), calls[0]["function"]["name"] if calls else "text"))
                elif one["label"] != "oos":
                    rows.append((one["text"], one["label"]))
    order = np.random.default_rng(0).permutation(len(rows))[: N_TRAINED + MOST_ROWS]
    texts, labels = zip(*(rows[i] for i in order.tolist()), strict=True)
    return list(texts), list(labels)


def answers(
    kind: str, texts: list[str], gold: np.ndarray, n_labels: int, new: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return label and confidence by row of `new`, of a linear model fitted on texts with labels."""
    if kind == "words":
        features = TfidfFeatures.fit(texts).matrix
    else:
        from smallfirst.models.catalog import find_weights
        from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, open_encoder

        features = open_encoder(find_weights(DEFAULT_ENCODER, download=False)).embed
    weights, bias = fit_logistic_regression(features(texts), gold, n_labels, INVERSE_REGULARIZATION[kind])
    found = [np.asarray(features(new[at : at + 500]) @ weights.T) + bias for at in range(0, len(new), 500)]
    logits = np.concatenate(found)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares.argmax(axis=1), shares.max(axis=1)


def record(name: str, folder: Path) -> None:
    texts, labels = pool(name)
    names, gold = np.unique(labels, return_inverse=True)
    n = N_TRAINED
    said, confidence = answers(SETS[name], texts[:n], gold[:n], len(names), texts[n:])
    right = said == gold[n:]
    np.savez(folder / f"{name.replace(' ', '_')}.npz", right=right, confidence=confidence)
    print(name, len(right), right.mean(), flush=True)
