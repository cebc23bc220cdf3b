"""Labels of tokens into marked words: O, then B and I of each field, an I behind its own field's B or I alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Mark(NamedTuple):
    """Tokens marked for a field."""

    field: int
    start: int
    end: int
    """Excluded."""
    log_probability: float
    """Of these labels and of the end there, in nats."""


def best_labels(log_probs: np.ndarray) -> np.ndarray:
    """Return the likeliest allowed labels (tokens,) for (tokens, labels) nats: Viterbi over what may follow what."""
    likeliest: np.ndarray = log_probs.argmax(axis=1)
    if _is_allowed(likeliest):
        return likeliest
    n_tokens, n_labels = log_probs.shape
    begin, inside = np.arange(1, n_labels, 2), np.arange(2, n_labels, 2)
    score, back = log_probs[0].copy(), np.zeros((n_tokens, n_labels), dtype=np.int64)
    score[inside] = -np.inf
    for t in range(1, n_tokens):
        back[t] = score.argmax()
        back[t, inside] = np.where(score[begin] >= score[inside], begin, inside)
        score = score[back[t]] + log_probs[t]
    labels = np.empty(n_tokens, dtype=np.int64)
    labels[-1] = score.argmax()
    for t in range(n_tokens - 1, 0, -1):
        labels[t - 1] = back[t, labels[t]]
    return labels


def marks(log_probs: np.ndarray, labels: np.ndarray) -> list[Mark]:
    """Return what the labels (tokens,) mark, in order."""
    found = []
    starts = np.flatnonzero(labels % 2 == 1)
    for start in starts.tolist():
        end = start + 1
        while end < len(labels) and labels[end] == labels[start] + 1:
            end += 1
        found.append(_mark(log_probs, int(labels[start] - 1) // 2, start, end))
    return found


def likeliest_marks(log_probs: np.ndarray, field: int, n: int) -> list[Mark]:
    """Return the `n` places at which the field most likely begins, each as long as it goes on more likely than not."""
    found = []
    for start in np.argsort(-log_probs[:, 1 + 2 * field])[:n].tolist():
        end = start + 1
        while end < len(log_probs) and log_probs[end, 2 + 2 * field] > log_probs[end, 0]:
            end += 1
        found.append(_mark(log_probs, field, start, end))
    return found


def absence(log_probs: np.ndarray) -> np.ndarray:
    """Return for each field the log-probability (fields,) that no token begins it."""
    begins = np.minimum(log_probs[:, 1::2], -1e-9)
    absent: np.ndarray = np.log1p(-np.exp(begins)).sum(axis=0)
    return absent


def _mark(log_probs: np.ndarray, field: int, start: int, end: int) -> Mark:
    begin, inside = 1 + 2 * field, 2 + 2 * field
    total = float(log_probs[start, begin] + log_probs[start + 1 : end, inside].sum())
    if end < len(log_probs):
        total += math.log1p(-math.exp(min(float(log_probs[end, inside]), -1e-9)))
    return Mark(field, start, end, total)


def _is_allowed(labels: np.ndarray) -> bool:
    before = np.concatenate([[0], labels[:-1]])
    inside = (labels > 0) & (labels % 2 == 0)
    return bool((~inside | (before == labels) | (before == labels - 1)).all())
