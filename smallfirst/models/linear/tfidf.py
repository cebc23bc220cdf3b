"""TF-IDF of words and of pieces of words, equal to scikit-learn's and without loading it (120 MB, ten times slower).

A ridge regression on them tells what a run on the same cases can be expected to do.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smallfirst.base.files import write_atomically

_WORD = re.compile(r"(?u)\b\w\w+\b")
_PIECE_LENGTHS = range(2, 6)


class Vocabulary(NamedTuple):
    """The terms of one kind in the training texts."""

    column: Mapping[str, int]
    idf: np.ndarray
    """Of each: 1 + ln((1 + texts) / (1 + texts that have it))."""

    @classmethod
    def fit(cls, grams: Callable[[str], Iterable[str]], texts: Sequence[str]) -> Vocabulary:
        counts = Counter(term for text in texts for term in set(grams(text)))
        terms = sorted(counts)
        idf = 1 + np.log((1 + len(texts)) / (1 + np.array([counts[term] for term in terms], dtype=np.float64)))
        return cls({term: column for column, term in enumerate(terms)}, idf)

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Vocabulary:
        return cls(saved["vocabulary"], np.asarray(saved["idf"]))

    def saved(self) -> dict[str, Any]:
        """Return it as plain values, as `load` takes them."""
        return {"vocabulary": self.column, "idf": self.idf.tolist()}


SparseRow = tuple[np.ndarray, np.ndarray]
"""Columns and values."""


class SparseRows(NamedTuple):
    """Sparse rows, which can only be multiplied by a matrix."""

    rows: tuple[SparseRow, ...]

    def __matmul__(self, dense: np.ndarray) -> np.ndarray:
        product = np.zeros((len(self.rows), dense.shape[1]))
        for i, (columns, values) in enumerate(self.rows):
            product[i] = values @ dense[columns]
        return product


class TfidfFeatures:
    """TF-IDF over words (1-2) and characters inside words (2-5), side by side, each of length 1."""

    def __init__(self, words: Vocabulary, pieces: Vocabulary) -> None:
        self.words, self.pieces = words, pieces

    @classmethod
    def fit(cls, texts: Sequence[str]) -> TfidfFeatures:
        return cls(Vocabulary.fit(word_grams, texts), Vocabulary.fit(piece_grams, texts))

    def __call__(self, texts: Sequence[str]) -> SparseRows:
        """Return one row per text; terms that do not occur in the training texts are ignored."""
        return SparseRows(tuple(map(self._row, texts)))

    def matrix(self, texts: Sequence[str]) -> Any:
        """Return the rows as a sparse matrix of SciPy (texts, features), to fit something to them."""
        return sparse_matrix(map(self._row, texts), len(self.words.idf) + len(self.pieces.idf))

    def save(self, folder: Path) -> None:
        parts = [part.saved() for part in (self.words, self.pieces)]
        write_atomically(folder / "words.json", json.dumps(parts, ensure_ascii=False).encode())

    @classmethod
    def load(cls, folder: Path) -> TfidfFeatures:
        parts = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return cls(*map(Vocabulary.load, parts))

    def _row(self, text: str) -> SparseRow:
        return term_row([(word_grams(text), self.words), (piece_grams(text), self.pieces)])


def term_row(parts: Iterable[tuple[Iterable[str], Vocabulary]]) -> SparseRow:
    """Return the known terms of a text's parts side by side, each part of length 1: (1 + log count) * idf."""
    columns, weights, first = list[int](), list[float](), 0
    for terms, (known, idf) in parts:
        counted = Counter(known[term] for term in terms if term in known)
        values = [(1 + math.log(count)) * float(idf[column]) for column, count in counted.items()]
        length = math.sqrt(math.fsum(value * value for value in values)) or 1.0
        columns += [first + column for column in counted]
        weights += [value / length for value in values]
        first += len(idf)
    return np.array(columns, dtype=np.intp), np.array(weights)


def sparse_matrix(rows: Iterable[SparseRow], width: int) -> Any:
    """Return rows as a sparse matrix of SciPy (rows, width)."""
    from scipy import sparse

    columns, values = zip(*rows, strict=True)
    ends = np.cumsum([0, *map(len, columns)])
    found = sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), ends), shape=(len(columns), width))
    found.sort_indices()
    return found


def word_grams(text: str) -> Iterator[str]:
    """Yield the words of at least two characters without case, then the pairs of them."""
    words = _WORD.findall(text.lower())
    yield from words
    for first, second in pairwise(words):
        yield f"{first} {second}"


def piece_grams(text: str) -> Iterator[str]:
    """Yield the 2 to 5 characters long pieces of each word with a blank on either side; a shorter word whole, once."""
    for word in text.lower().split():
        padded = f" {word} "
        for length in _PIECE_LENGTHS:
            if length >= len(padded):
                yield padded
                break
            for start in range(len(padded) - length + 1):
                yield padded[start : start + length]


WORD_ERRORS = (1.0, 0.8, 0.5)
"""Share of the cheap model's errors that the model of a run makes: at worst, probably, and at best."""
PARTS = 10
"""In which cases are left out."""
_RIDGE, _VECTOR_WEIGHT = 1.0, 4.0


class HeldOutAnswers(NamedTuple):
    """A cheap model's answers to cases that it did not learn."""

    confidence: np.ndarray
    """(cases,), in [0, 1]."""
    right: np.ndarray
    """(cases,), True where the answer is the large model's."""
    n: np.ndarray | None = None
    """(cases,), requests that asked each; None: one each. Shares are of requests, and each case certifies once."""


def hold_out(
    texts: Sequence[str],
    learnt: Sequence[Sequence[str]],
    said: Sequence[Sequence[str]],
    vectors: np.ndarray | None = None,
    *,
    share: float,
) -> HeldOutAnswers:
    """Return the answers of a ridge regression to the cases of the other parts, left out in closed form.

    It learns this share of the columns of labels `learnt` (columns, cases), each by itself, from words and their parts
    and from sentence `vectors` of unit length (cases, dimensions); an answer is right where all are what was `said`.
    """
    both = [np.unique([*own, *theirs], return_inverse=True)[1] for own, theirs in zip(learnt, said, strict=True)]
    features = TfidfFeatures.fit(texts).matrix(texts)
    kernel = np.asarray((features @ features.T).todense(), dtype=np.float64)
    if vectors is not None:
        kernel += _VECTOR_WEIGHT * (vectors @ vectors.T)
    inverse = np.linalg.inv(kernel + _RIDGE * np.eye(len(kernel)))
    wanted = np.hstack([np.eye(int(one.max()) + 1)[one[: len(texts)]] for one in both])
    dual, scores = inverse @ (wanted - wanted.mean(axis=0)), np.zeros_like(wanted)
    for out, read in left_out(len(texts), share):
        found = wanted[out] - np.linalg.solve(inverse[np.ix_(out, out)], dual[out])
        scores[read] = found[read[out]]
    return judge(scores, both)


def left_out(n: int, share: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (n,) bool for each part: cases that are not learnt, so that this share is, and those of them to answer."""
    part_of, n_out = np.arange(n) % PARTS, min(PARTS - 1, max(1, round(PARTS * (1 - share))))
    for part in range(PARTS):
        yield (part_of - part) % PARTS < n_out, part_of == part


def judge(scores: np.ndarray, both: Sequence[np.ndarray]) -> HeldOutAnswers:
    """Return the answers of scores (cases, labels of `both` side by side), as confident as their least margin."""
    margin, right = np.ones(len(scores)), np.ones(len(scores), dtype=bool)
    for one in both:
        own, scores = np.split(scores, [int(one.max()) + 1], axis=1)
        ranked = np.sort(own, axis=1)
        margin = np.minimum(margin, ranked[:, -1] - ranked[:, -2] if ranked.shape[1] > 1 else ranked[:, -1])
        right &= own.argmax(axis=1) == one[len(own) :]
    return HeldOutAnswers(np.clip(0.5 + 0.5 * margin, 0.0, 1.0), right)
