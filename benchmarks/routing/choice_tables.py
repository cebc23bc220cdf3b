"""The recorded tables that `choice.py` draws from: whether each candidate and the large model are right, row by row.

Candidates are logistic regressions on words and on frozen MiniLM vectors, fitted on more or fewer rows: a rule that
chooses among models sees what it would see of real ones, and the whole pool is the truth.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.routing.certificates_pools import PRICES, _gsm8k_rows, draft_score
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, open_encoder
from smallfirst.models.linear.classifier import INVERSE_REGULARIZATION, fit_logistic_regression
from smallfirst.models.linear.tfidf import TfidfFeatures

DATA = Path(os.environ.get("SMALLFIRST_DATA", "../shared/datasets"))


class Table(NamedTuple):
    """Models' outcomes on the same rows."""

    name: str
    names: tuple[str, ...]
    """Candidates."""
    right: np.ndarray
    """Whether each is right, (candidates, rows)."""
    confidence: np.ndarray
    """In [0, 1], of the same shape."""
    large_right: np.ndarray
    """Of the large model, (rows,)."""
    large_usd: np.ndarray
    """Cost of each of its answers, (rows,)."""


def load(cache: Path) -> list[Table]:
    """Return the tables; what was computed before is read from `cache`."""
    makers: dict[str, Callable[[], Table]] = {
        "banking77": _banking,
        "clinc150": _clinc,
        "tool_calls": _tool_calls,
        "gsm8k": _gsm8k,
    }
    tables = []
    for name, make in makers.items():
        path = cache / f"{name}.npz"
        if not path.exists():
            made = make()
            np.savez_compressed(path, **{field: np.asarray(value) for field, value in made._asdict().items()})
        with np.load(path) as held:
            values = {field: held[field] for field in Table._fields}
        tables.append(Table(**{**values, "name": name, "names": tuple(values["names"].tolist())}))
    return tables


def _banking() -> Table:
    """Banking77's test rows, with a hosted large model's answers and bill."""
    train, test = (_gzipped(DATA / "hosted_banking77" / f"{part}.jsonl.gz") for part in ("train", "test"))
    right = np.array([row["answer_label"] == row["label"] for row in test])
    usd = np.array([row["cost_usd"] for row in test])
    sizes = {"words": (1000, 3000), "encoder": (500, 1000, 3000, 9000)}
    return _linear("banking77", _labelled(train), _labelled(test), sizes, right, usd)


def _clinc() -> Table:
    """CLINC150's in-scope test rows; the large model stands for one that is right on 95 %, whatever the row."""
    train, test = (
        [(row["text"], row["label"]) for row in _lines(DATA / "clinc150" / f"{part}.jsonl") if row["label"] != "oos"]
        for part in ("train", "test")
    )
    right = np.random.default_rng(0).random(len(test)) < 0.95
    sizes = {"words": (1500, 4500), "encoder": (750, 1500, 4500)}
    return _linear("clinc150", train, test, sizes, right, np.full(len(test), 1e-4))


def _tool_calls() -> Table:
    """Which function an assistant calls next, if any, by the last two turns; split by dialogue.

    The large model stands for one that calls what was recorded but for 2 % at random.
    """
    train, test = [], []
    for service in ("Restaurants_1", "Movies_1", "Hotels_2"):
        for row in _gzipped(DATA / "tool_calls" / f"{service}.jsonl.gz"):
            said = " / ".join(str(turn["content"])[:200] for turn in row["request"]["messages"][-2:])
            calls = row["response"]["choices"][0]["message"].get("tool_calls")
            called = calls[0]["function"]["name"] if calls else "none"
            part = test if sum(row["dialogue"].encode()) % 10 < 4 else train
            part.append((said, called))
    right = np.random.default_rng(0).random(len(test)) < 0.98
    sizes = {"words": (300, 1000, 5000), "encoder": (300, 1000, 5000)}
    return _linear("tool_calls", train, test, sizes, right, np.full(len(test), 1e-4))


def _gsm8k() -> Table:
    """RouteLLM's GSM8K: a weak and a strong model, the weak one's draft scored by what it says."""
    rows, fit = _gsm8k_rows()
    kept = np.flatnonzero(~fit)
    strong = np.array([row["strong_correct"] for row in rows])[kept]
    usd = np.array([len(row["strong_response"]) / 4 * PRICES["strong"] for row in rows])[kept]
    weak = np.array([row["weak_correct"] for row in rows])[kept]
    return Table("gsm8k", ("weak",), weak[None, :], draft_score(rows, fit)[kept][None, :], strong, usd)


def _linear(
    name: str,
    train: Sequence[tuple[str, str]],
    test: Sequence[tuple[str, str]],
    sizes: dict[str, tuple[int, ...]],
    large_right: np.ndarray,
    large_usd: np.ndarray,
) -> Table:
    """Fit each kind on the first rows of a shuffled training part, and answer the test part."""
    order = np.random.default_rng(0).permutation(len(train))[: max(map(max, sizes.values()))]
    texts, said = [train[i][0] for i in order], [train[i][1] for i in order]
    labels = sorted({*said, *(label for _, label in test)})
    gold, wanted = (np.array([labels.index(one) for one in part]) for part in (said, [label for _, label in test]))
    encoder = open_encoder(find_weights(DEFAULT_ENCODER))
    vectors = {"encoder": (encoder.embed(texts), encoder.embed([text for text, _ in test]))}
    names, right, confidence = [], [], []
    for kind, numbers in sizes.items():
        for n in numbers:
            if kind == "words":
                tfidf = TfidfFeatures.fit(texts[:n])
                known, asked = tfidf.matrix(texts[:n]), tfidf.matrix([text for text, _ in test])
            else:
                known, asked = vectors[kind][0][:n], vectors[kind][1]
            weights, bias = fit_logistic_regression(known, gold[:n], len(labels), INVERSE_REGULARIZATION[kind])
            logits = np.asarray(asked @ weights.T) + bias
            held_likely = np.exp(logits - logits.max(axis=1, keepdims=True))
            held_likely /= held_likely.sum(axis=1, keepdims=True)
            names.append(f"{kind} {n}")
            right.append(held_likely.argmax(axis=1) == wanted)
            confidence.append(held_likely.max(axis=1))
            print(f"{name}: {names[-1]} {right[-1].mean():.3f} of {len(test)}", flush=True)
    return Table(name, tuple(names), np.array(right), np.array(confidence), large_right, large_usd)


def _labelled(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["text"], row["label"]) for row in rows]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _gzipped(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
