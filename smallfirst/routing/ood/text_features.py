"""Compare a text with a task's own requests by words alone, without PyTorch.

Four scores, each larger the less a text is like them: the share of its words and word pairs that no training text has;
its distance, by character n-grams, from the nearest training text and from the nearest three; its distance from the
nearest one by words that occur more than once. About 50 MB in memory for 10,000 short texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smallfirst.files import write_atomically
from smallfirst.models.linear.tfidf import TfidfFeatures, piece_grams, word_grams

SCORES = ("unseen", "nearest", "near", "unlike")
MAX_ROWS = 10_000
"""Training texts to compare with; of more, evenly spaced ones."""
NEAREST = 3
"""Training texts over which `near` averages."""
MAX_CHARS = 2000
"""Of a longer text, a training text too, only the first and the last half of this are compared."""
AT_ONCE = 128
"""Texts compared at a time."""


class TextFeatures:
    """Words, character n-grams and texts of a task's own requests."""

    def __init__(self, features: TfidfFeatures, rows: Mapping[str, Any], n_texts: int) -> None:
        """`rows` of `words` and of `pieces` are sparse (n-grams, texts), each text a unit vector."""
        self._features, self._rows, self.n_texts = features, dict(rows), n_texts
        self._words, self._pieces = features.words, features.pieces
        self._unseen_idf = 1 + math.log(1 + n_texts)
        # 1 for each word that two or more training texts have: one of a single text has an idf of `_unseen_idf` - ln 2.
        self._repeated = (self._words.idf < self._unseen_idf - math.log(2.5)).astype(np.float64)

    @classmethod
    def fit(cls, texts: Sequence[str]) -> TextFeatures:
        made = cls(TfidfFeatures.fit([_ends(text) for text in texts]), {}, len(texts))
        words, pieces = _counted(texts[:: max(1, -(-len(texts) // MAX_ROWS))])
        found = {
            "words": _vectors(words, made._words.column, made._repeated),  # without idf
            "pieces": _vectors(pieces, made._pieces.column, made._pieces.idf),
        }
        made._rows = {name: rows.T.tocsr() for name, rows in found.items()}
        return made

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the SCORES (texts, 4), float64."""
        words, pieces = _counted(texts)
        known = self._words.column
        unseen = [sum(gram not in known for gram in n) / len(n) if n else 1.0 for n in words]
        near = self._distances(_vectors(pieces, self._pieces.column, self._pieces.idf), "pieces", NEAREST)
        lengths = [max(1.0, math.sqrt(counts.total())) for counts in words]
        unlike = self._distances(_vectors(words, known, self._repeated, lengths), "words", 1)
        return np.column_stack([unseen, near, unlike[:, 0]])

    def log_likelihood(self, text: str) -> float:
        """Return the log-likelihood of the text's words and word pairs under this task, each drawn independently."""
        ((grams,), _) = _counted([text])
        columns = [self._words.column[gram] for gram in grams if gram in self._words.column]
        # idf is 1 - ln of the share of texts with the n-gram
        return float((1 - self._words.idf[columns]).sum() + (len(grams) - len(columns)) * (1 - self._unseen_idf))

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save

        self._features.save(folder)
        tensors = {"n_texts": np.asarray([self.n_texts], dtype=np.int64)}
        for name, rows in self._rows.items():
            tensors |= {f"{name}.{part}": getattr(rows, part) for part in ("data", "indices", "indptr")}
            tensors[f"{name}.shape"] = np.asarray(rows.shape, dtype=np.int64)
        write_atomically(folder / "rows.safetensors", save(tensors))

    @classmethod
    def load(cls, folder: Path) -> TextFeatures:
        from safetensors.numpy import load_file
        from scipy import sparse

        tensors, rows = load_file(folder / "rows.safetensors"), {}
        for name in ("words", "pieces"):
            parts = tuple(tensors[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
            rows[name] = sparse.csr_matrix(parts, shape=tuple(tensors[f"{name}.shape"].tolist()))
        return cls(TfidfFeatures.load(folder), rows, int(tensors["n_texts"][0]))

    def _distances(self, vectors: Any, of: str, nearest: int) -> np.ndarray:
        """Return 1 - the largest cosine to a training text, and 1 - the mean of the `nearest` largest (texts, 2)."""
        rows = self._rows[of]
        distances, k = np.zeros((vectors.shape[0], 2)), min(nearest, rows.shape[1])
        for start in range(0, len(distances), AT_ONCE):
            cosines = (vectors[start : start + AT_ONCE] @ rows).toarray()  # (texts, rows)
            best = np.partition(cosines, -k, axis=1)[:, -k:]
            distances[start : start + AT_ONCE] = 1 - np.column_stack([best.max(axis=1), best.mean(axis=1)])
        return distances


def _counted(texts: Sequence[str]) -> tuple[list[Counter[str]], list[Counter[str]]]:
    """Return the words and word pairs, and the pieces of words, of each text."""
    cut = [_ends(text) for text in texts]
    return [Counter(word_grams(text)) for text in cut], [Counter(piece_grams(text)) for text in cut]


def _vectors(
    texts: Sequence[Counter[str]],
    columns: Mapping[str, int],
    weights: np.ndarray,
    lengths: Sequence[float] | None = None,
) -> Any:
    """Return sparse (texts, n-grams): (1 + ln count) * weight, divided by `lengths` or by the norm."""
    from scipy import sparse

    data, indices, ends = [], [], [0]
    for row, counts in enumerate(texts):
        known = {columns[gram]: n for gram, n in counts.items() if gram in columns}
        at = np.fromiter(known, dtype=np.int64, count=len(known))
        value = (1 + np.log(np.fromiter(known.values(), dtype=np.float64, count=len(known)))) * weights[at]
        data.append(value / (lengths[row] if lengths else max(float(np.linalg.norm(value)), 1e-12)))
        indices.append(at)
        ends.append(ends[-1] + len(at))
    parts = (np.concatenate(data).astype(np.float32), np.concatenate(indices), np.asarray(ends))
    found = sparse.csr_matrix(parts, shape=(len(texts), len(weights)))
    found.eliminate_zeros()
    return found


def _ends(text: str) -> str:
    half = MAX_CHARS // 2
    return text if len(text) <= MAX_CHARS else f"{text[:half]} {text[-half:]}"
