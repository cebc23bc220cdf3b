"""Out-of-domain features of a text from its hidden state and label logits.

The energy of its logits (Liu et al. 2020), the largest label probability (Hendrycks and Gimpel 2017), the Mahalanobis
distance to the nearest label (Lee et al. 2018) and the distance to the nearest training texts (Sun et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smallfirst.base.files import write_atomically

STATE_FEATURES = ("energy", "probability", "mahalanobis", "neighbour")
"""Columns of `HiddenStateProfile.nonconformity`; each grows with the distance from the training texts."""
N_NEIGHBOURS = 5
"""Training texts over which the neighbour feature averages."""
BATCH_ROWS = 512
"""Texts compared with all training texts at a time."""


class HiddenStates(NamedTuple):
    """What a model computed for some texts."""

    hidden: np.ndarray
    """Last hidden state (texts, width), float32; the logits for a model without hidden states."""
    logits: np.ndarray
    """Unnormalised label logits (texts, labels), float32; no columns for a model without labels."""


class HiddenStateProfile:
    """The distribution of a task's own training texts among the hidden states of its model."""

    def __init__(self, means: np.ndarray, whitening: np.ndarray, rows: np.ndarray) -> None:
        """`means` (labels, width) are already multiplied by `whitening` (width, width); `rows` are unit vectors."""
        self.means, self.whitening, self.rows = means, whitening, rows

    @classmethod
    def fit(cls, states: HiddenStates, gold: Sequence[int] | np.ndarray) -> HiddenStateProfile:
        """Return the profile of texts with label indices `gold`; covariance as in Ledoit and Wolf (2004)."""
        from sklearn.covariance import LedoitWolf

        hidden, label = states.hidden.astype(np.float64), np.asarray(gold)
        seen, place = np.unique(label, return_inverse=True)
        means = np.stack([hidden[label == one].mean(axis=0) for one in seen])
        fitted = LedoitWolf(assume_centered=True).fit(hidden - means[place])
        whitening = np.linalg.cholesky(fitted.precision_)  # |x @ whitening|² is x's squared Mahalanobis length
        arrays = (means @ whitening, whitening, _unit(hidden))
        return cls(*(array.astype(np.float32) for array in arrays))

    def nonconformity(self, states: HiddenStates) -> np.ndarray:
        """Return the STATE_FEATURES (texts, 4), float64; for states without logits only the last two."""
        of_logits = logit_features(states.logits) if states.logits.shape[1] else ()
        return np.column_stack([*of_logits, self._mahalanobis(states), self._neighbour(states)])

    def save(self, path: Path) -> None:
        from safetensors.numpy import save

        write_atomically(path, save({"means": self.means, "whitening": self.whitening, "rows": self.rows}))

    @classmethod
    def load(cls, path: Path) -> HiddenStateProfile:
        from safetensors.numpy import load_file

        return cls(**load_file(path))

    def _mahalanobis(self, states: HiddenStates) -> np.ndarray:
        white = states.hidden @ self.whitening
        squares = (white**2).sum(axis=1, keepdims=True) - 2 * white @ self.means.T + (self.means**2).sum(axis=1)
        distance: np.ndarray = np.sqrt(np.maximum(squares.min(axis=1), 0))
        return distance

    def _neighbour(self, states: HiddenStates) -> np.ndarray:
        unit, k = _unit(states.hidden), min(N_NEIGHBOURS, len(self.rows))
        distance = np.zeros(len(unit))
        for start in range(0, len(unit), BATCH_ROWS):
            cosines = unit[start : start + BATCH_ROWS] @ self.rows.T
            distance[start : start + BATCH_ROWS] = 1 - np.partition(cosines, -k, axis=1)[:, -k:].mean(axis=1)
        return distance


def logit_features(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return energy and minus the largest log-probability of each text; larger is less familiar."""
    from scipy.special import logsumexp

    whole = logsumexp(logits.astype(np.float64), axis=1)
    return -whole, whole - logits.max(axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(length > 0, length, 1)
    return unit
