"""How many recorded answers are wrong, and which: a words model that never saw a row, mixed with answers by chance.

Kernel ridge regression on TF-IDF, each fold left out in closed form. Answers are taken for draws from its softmax, but
for a share that is drawn by frequency alone; share and temperature maximize the likelihood (Lawrence and Schölkopf
2001). A row's posterior of being such a draw is calibrated, with no threshold of its own. Seconds for any log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg

from smallfirst.models.linear.tfidf import TfidfFeatures

_MOST_CHARACTERS = 1_000
_RIDGE, _FOLDS, _ROUNDS = 1.0, 10, 60
_TEMPERATURES = np.geomspace(0.02, 0.4, 16)
_INDIFFERENT = 3.0
"""Nats of likelihood between which the lower temperature is taken: the other rows decide what is certain."""


class WordsModel:
    """Texts compared by their words; answers of any coding are learnt from them."""

    def __init__(self, texts: Sequence[str]) -> None:
        cut = [text[:_MOST_CHARACTERS] for text in texts]
        features = TfidfFeatures.fit(cut).matrix(cut)
        self._kernel: np.ndarray = (features @ features.T.tocsr()).toarray()
        """(texts, texts)."""

    def held_out(self, targets: np.ndarray, folds: np.ndarray, learn: np.ndarray | None = None) -> np.ndarray:
        """Return what the other folds say of each row's targets, both (rows, targets).

        `folds` (rows,) are numbers; rows outside `learn` (rows,), True or False, are judged and not learnt from.
        """
        at = np.arange(len(targets)) if learn is None else np.flatnonzero(learn)
        if not len(at):
            return np.zeros_like(targets)
        mean = targets[at].mean(axis=0)
        kernel = self._kernel[np.ix_(at, at)]
        inverse = linalg.inv(kernel + _RIDGE * np.eye(len(at)), overwrite_a=True, check_finite=False)
        dual = inverse @ (targets[at] - mean)
        scores: np.ndarray = mean + self._kernel[:, at] @ dual
        for fold in np.unique(folds[at]):
            own = np.flatnonzero(folds[at] == fold)
            scores[at[own]] = targets[at[own]] - np.linalg.solve(inverse[np.ix_(own, own)], dual[own])
        return scores


def folds_by(clusters: Sequence[int]) -> np.ndarray:
    """Return a fold for each row; rows of a cluster have one."""
    draw = np.random.default_rng(0).integers(0, _FOLDS, size=max(clusters, default=0) + 1)
    found: np.ndarray = draw[np.asarray(clusters, dtype=np.intp)]
    return found


class LabelNoise(NamedTuple):
    """Wrong answers among the given ones."""

    share: float
    """Estimated share, in [0, 1]."""
    wrong: np.ndarray
    """(rows,), each row's probability of being wrong."""


def estimate_noise(scores: np.ndarray, given: np.ndarray) -> LabelNoise:
    """Return the noise in `given` (rows,), numbers of categories, by held-out `scores` (rows, categories)."""
    by_chance = (np.bincount(given, minlength=scores.shape[1]) / len(given))[given]
    tried: list[tuple[float, LabelNoise]] = []
    for temperature in _TEMPERATURES:
        scaled = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
        meant = scaled[np.arange(len(given)), given] / scaled.sum(axis=1)
        share = 0.1
        for _ in range(_ROUNDS):
            drawn = share * by_chance
            both = drawn + (1 - share) * meant + 1e-300
            share = float((drawn / both).mean())
        tried.append((float(np.log(both).sum()), LabelNoise(share, drawn / both)))
    best = max(likelihood for likelihood, _ in tried)
    return next(noise for likelihood, noise in tried if likelihood >= best - _INDIFFERENT)
