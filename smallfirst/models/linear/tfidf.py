"""TF-IDF of words and of pieces of words, equal to scikit-learn's and without loading it (120 MB, ten times slower)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

_WORD = re.compile(r"(?u)\b\w\w+\b")
_PIECE_LENGTHS = range(2, 6)


class Vocabulary(NamedTuple):
    """The terms of one vectoriser."""

    column: Mapping[str, int]
    idf: np.ndarray


class SparseRows(NamedTuple):
    """Sparse rows, which can only be multiplied by a matrix."""

    rows: tuple[tuple[np.ndarray, np.ndarray], ...]

    def __matmul__(self, dense: np.ndarray) -> np.ndarray:
        product = np.zeros((len(self.rows), dense.shape[1]))
        for i, (columns, values) in enumerate(self.rows):
            product[i] = values @ dense[columns]
        return product


class TfidfVectorizer:
    """TF-IDF over words (1-2) and characters inside words (2-5), side by side, each of length 1."""

    def __init__(self, words: Vocabulary, pieces: Vocabulary) -> None:
        self._words, self._pieces = words, pieces

    def __call__(self, texts: Sequence[str]) -> SparseRows:
        """Return one row per text; terms that do not occur in the training texts are ignored."""
        return SparseRows(tuple(self._row(text.lower()) for text in texts))

    def _row(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        columns, values = _weighed(_words(text), self._words)
        of_pieces, their_values = _weighed(_pieces(text), self._pieces)
        moved = [column + len(self._words.idf) for column in of_pieces]
        return np.array(columns + moved, dtype=np.intp), np.array(values + their_values)


def _weighed(terms: Iterator[str], table: Vocabulary) -> tuple[list[int], list[float]]:
    """Return columns and values of a text: (1 + log count) * idf, scaled to length 1."""
    known, idf = table.column, table.idf
    counted = Counter(known[term] for term in terms if term in known)
    values = [(1 + math.log(count)) * float(idf[column]) for column, count in counted.items()]
    length = math.sqrt(math.fsum(value * value for value in values)) or 1.0
    return list(counted), [value / length for value in values]


def _words(text: str) -> Iterator[str]:
    words = _WORD.findall(text)
    yield from words
    for first, second in pairwise(words):
        yield f"{first} {second}"


def _pieces(text: str) -> Iterator[str]:
    """Yield the 2 to 5 characters long pieces of each word with a blank on either side; a shorter word whole, once."""
    for word in text.split():
        padded = f" {word} "
        for length in _PIECE_LENGTHS:
            if length >= len(padded):
                yield padded
                break
            for start in range(len(padded) - length + 1):
                yield padded[start : start + length]
