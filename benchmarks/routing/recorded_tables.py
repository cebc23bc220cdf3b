"""Recorded tables for simulations of certificates and choices: what small candidates answered to thousands of rows.

    python -m benchmarks.routing.recorded_tables FOLDER

Candidates are fitted on few rows, as real first sets are small, and answer a pool that nothing was fitted on. In a
simulation the pool is the population: rows are drawn from it with replacement, so the true rates are known. Rows come
from $SMALLFIRST_DATA (`benchmarks/accuracy/run.py` says where else they are looked for); a table is kept in FOLDER.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.accuracy.run import data_folder
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import open_encoder
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.tasks.classify import Classify

NAMES = ("clinc150", "banking77", "hosted_banking77", "tool_calls")
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
CANDIDATES = ("words", "encoder on half", "encoder")
N_TRAIN = {"clinc150": 1500, "banking77": 1000, "hosted_banking77": 1500, "tool_calls": 600}
MAX_POOL = 4000
MIN_LABEL_ROWS = 20


class Table(NamedTuple):
    """Answers of CANDIDATES to one pool."""

    name: str
    texts: np.ndarray
    confidence: np.ndarray
    """By candidate and row, in [0, 1]."""
    right: np.ndarray
    """By candidate and row."""

    @property
    def n(self) -> int:
        return int(self.right.shape[1])


def load(folder: Path, name: str) -> Table:
    """Return a table, from `folder` or made anew."""
    path = folder / f"{name}.npz"
    if not path.exists():
        made = _make(name)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, texts=made.texts, confidence=made.confidence, right=made.right)
    with np.load(path, allow_pickle=False) as kept:
        return Table(name, kept["texts"], kept["confidence"], kept["right"])


def _make(name: str) -> Table:
    rows = list(dict.fromkeys(_rows(name)))  # one row a text
    rows = list({text: (text, label) for text, label in rows}.values())
    counts: dict[str, int] = {}
    for _, label in rows:
        counts[label] = counts.get(label, 0) + 1
    rows = [row for row in rows if counts[row[1]] >= MIN_LABEL_ROWS]
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    n = N_TRAIN[name]
    train, pool = ([rows[i] for i in part] for part in (order[:n], order[n : n + MAX_POOL]))
    task = Classify(name=name, labels=tuple(sorted({label for _, label in rows})))
    encoder = _Cached()
    confidence, right = [], []
    for kind, fitted_on in (("words", train), ("encoder", train[: n // 2]), ("encoder", train)):
        data = Dataset(name="train", examples=tuple(_example(*row) for row in fitted_on))
        model = LinearClassifier.fit(kind, data, task, encoder=encoder if kind == "encoder" else None)
        said = np.exp([one.log_probabilities for one in model.score([text for text, _ in pool])])
        answers = [task.closed[i] for i in said.argmax(axis=1)]
        confidence.append(said.max(axis=1))
        right.append([answer == label for answer, (_, label) in zip(answers, pool, strict=True)])
    return Table(name, np.array([text for text, _ in pool]), np.array(confidence), np.array(right))


class _Cached:
    """A sentence encoder that embeds every text once."""

    def __init__(self) -> None:
        self._encoder, self._vectors = open_encoder(find_weights(ENCODER)), dict[str, np.ndarray]()

    def embed(self, texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        self._vectors |= dict(zip(new, self._encoder.embed(new), strict=True)) if new else {}
        return np.stack([self._vectors[text] for text in texts])


def _example(text: str, label: str) -> Example:
    return Example(messages=(Message(role="user", content=text),), answer=label, shape="label")


def _rows(name: str) -> Iterator[tuple[str, str]]:
    """Yield texts and labels; of `hosted_banking77` the hosted large model's answers, of `tool_calls` the function."""
    if name in ("clinc150", "banking77"):
        for line in (data_folder(name) / "train.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["label"] != "oos":
                yield row["text"], row["label"]
        return
    folder = data_folder("clinc150").parent / name
    for path in sorted(folder.glob("*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            row = json.loads(line)
            if name == "hosted_banking77":
                yield row["text"], row["answer_label"] or "none"
                continue
            message = row["response"]["choices"][0]["message"]
            calls = message.get("tool_calls") or []
            said = [one["content"] for one in row["request"]["messages"] if one["role"] != "system"][-3:]
            yield " | ".join(map(str, said)), calls[0]["function"]["name"] if calls else "talk"


if __name__ == "__main__":
    for named in NAMES:
        table = load(Path(sys.argv[1]), named)
        accuracies = ", ".join(
            f"{name} {right.mean():.3f}" for name, right in zip(CANDIDATES, table.right, strict=True)
        )
        print(f"{named}: {table.n} rows, {accuracies}", flush=True)
