"""Features of a request's text for a linear model: hashed words, and counts of what stands in it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
N_HASH_BUCKETS = 2**15
"""Buckets that words and word pairs are hashed to."""
N_COMPONENTS = 64
"""Components of the words' space (truncated SVD); their weights are projected back."""
QUESTION_WORD = re.compile(r"\b(?:who|whom|whose|what|when|where|why|how|which)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")


def surface_features(text: str) -> tuple[float, ...]:
    """Return length, sentences, questions, numbers and punctuation of a text, as logs or shares."""
    words, numbers = text.split(), NUMBER.findall(text)
    largest = max((float(number.replace(",", "").split(".")[0]) for number in numbers), default=0.0)
    return (
        math.log1p(len(text)),
        math.log1p(len(words)),
        sum(map(len, words)) / max(1, len(words)),
        math.log1p(len(SENTENCE_END.findall(text))),
        math.log1p(text.count("\n")),
        float(text.count("?")),
        float(len(QUESTION_WORD.findall(text))),
        math.log1p(len(numbers)),
        math.log1p(len(set(numbers))),
        math.log1p(min(largest, 1e12)),
        sum(c.isdigit() for c in text) / max(1, len(text)),
        sum(not c.isalnum() and not c.isspace() for c in text) / max(1, len(text)),
    )


N_SURFACE_FEATURES = len(surface_features(""))


def text_features(texts: Sequence[str]) -> np.ndarray:
    """Return the surface features of each text (texts, features)."""
    return np.array([surface_features(text) for text in texts], dtype=np.float64).reshape(-1, N_SURFACE_FEATURES)


def hashed_words(texts: Sequence[str]) -> Any:
    """Return which words and word pairs occur, as a sparse matrix (texts, N_HASH_BUCKETS) of 0 and 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        n_features=N_HASH_BUCKETS, ngram_range=(1, 2), binary=True, norm=None, alternate_sign=False
    )
    return hashing.transform(texts)


def weighed_words(hashed: Any, rarity: np.ndarray) -> Any:
    """Return the rows weighed by `rarity` (N_HASH_BUCKETS,), each of unit length."""
    from sklearn.preprocessing import normalize

    return normalize(hashed.multiply(rarity).tocsr())


def directions(rows: Any) -> np.ndarray:
    """Return the first components (columns, n) of the rows by truncated SVD (Halko et al. 2011)."""
    from sklearn.utils.extmath import randomized_svd

    if not (n := min(N_COMPONENTS, *rows.shape)):
        return np.zeros((rows.shape[1], 0))
    return np.asarray(randomized_svd(rows, n, n_iter=2, transpose=False, random_state=0)[2].T)
