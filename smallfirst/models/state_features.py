"""Out-of-domain features of a text from its hidden state and label logits.

The energy of its logits (Liu et al. 2020), the largest label probability (Hendrycks and Gimpel 2017), the Mahalanobis
distance to the nearest label (Lee et al. 2018) and the distance to the nearest training texts (Sun et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smallfirst.base.files import write_atomically

LOGIT_FEATURES, STATE_FEATURES = ("energy", "probability"), ("mahalanobis", "neighbour")
"""Columns of `logit_features` and of `HiddenStateProfile.nonconformity`; each grows with the distance from the training
texts."""
N_NEIGHBOURS = 5
"""Training texts over which the neighbour feature averages."""
BATCH_ROWS = 512
"""Texts compared with all training texts at a time."""


class HiddenStateProfile:
    """The distribution of a task's own training texts among the hidden states of its model."""

    def __init__(self, means: np.ndarray, whitening: np.ndarray, rows: np.ndarray) -> None:
        """`means` (labels, width) are already multiplied by `whitening` (width, width); `rows` are unit vectors."""
        self.means, self.whitening, self.rows = means, whitening, rows

    @classmethod
    def fit(cls, hidden: np.ndarray, gold: Sequence[int] | np.ndarray) -> HiddenStateProfile:
        """Return the profile of texts by their hidden states (texts, width) and label indices `gold`.

        The covariance is that of Ledoit and Wolf (2004).
        """
        from sklearn.covariance import LedoitWolf

        hidden, label = hidden.astype(np.float64), np.asarray(gold)
        seen, place = np.unique(label, return_inverse=True)
        means = np.stack([hidden[label == one].mean(axis=0) for one in seen])
        fitted = LedoitWolf(assume_centered=True).fit(hidden - means[place])
        whitening = np.linalg.cholesky(fitted.precision_)  # |x @ whitening|² is x's squared Mahalanobis length
        arrays = (means @ whitening, whitening, _unit(hidden))
        return cls(*(array.astype(np.float32) for array in arrays))

    def nonconformity(self, hidden: np.ndarray) -> np.ndarray:
        """Return the STATE_FEATURES (texts, 2), float64."""
        white = hidden @ self.whitening
        squares = (white**2).sum(axis=1, keepdims=True) - 2 * white @ self.means.T + (self.means**2).sum(axis=1)
        return np.column_stack([np.sqrt(np.maximum(squares.min(axis=1), 0)), self._neighbour(hidden)])

    def save(self, path: Path) -> None:
        from safetensors.numpy import save

        write_atomically(path, save({"means": self.means, "whitening": self.whitening, "rows": self.rows}))

    @classmethod
    def load(cls, path: Path) -> HiddenStateProfile:
        from safetensors.numpy import load_file

        return cls(**load_file(path))

    def _neighbour(self, hidden: np.ndarray) -> np.ndarray:
        unit, k = _unit(hidden), min(N_NEIGHBOURS, len(self.rows))
        distance = np.zeros(len(unit))
        for start in range(0, len(unit), BATCH_ROWS):
            cosines = unit[start : start + BATCH_ROWS] @ self.rows.T
            distance[start : start + BATCH_ROWS] = 1 - np.partition(cosines, -k, axis=1)[:, -k:].mean(axis=1)
        return distance


def logit_features(logits: np.ndarray) -> np.ndarray:
    """Return the LOGIT_FEATURES (texts, 2) of unnormalised label logits: energy, minus the largest log-probability."""
    from scipy.special import logsumexp

    whole = logsumexp(logits.astype(np.float64), axis=1)
    return np.column_stack([-whole, whole - logits.max(axis=1)])


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(length > 0, length, 1)
    return unit
