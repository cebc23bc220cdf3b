"""Cheap models, cross-validated on recorded answers in seconds, to foretell what a trained one can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from smallfirst.errors import WeightsNotFound

FOLDS = 3
MOST_CASES, MOST_CHARACTERS = 2500, 600_000
"""Most cases that are looked at, and most characters of all together."""
_RIDGE, _VECTOR_WEIGHT, _BATCH = 1.0, 4.0, 256
_SEED = 0


class HeldOut(NamedTuple):
    """A cheap model's answers to cases that it did not learn."""

    confidence: np.ndarray
    """(cases,), in [0, 1]."""
    right: np.ndarray
    """(cases,), True where the answer is the large model's."""


def drawn_cases(texts: Sequence[str]) -> list[int]:
    """Return which cases are looked at: all, or so many drawn at random that they are not too many or too long."""
    order: list[int] = np.random.default_rng(_SEED).permutation(len(texts))[:MOST_CASES].tolist()
    mean = sum(len(texts[i]) for i in order) / max(1, len(order))
    return order[: max(1, int(MOST_CHARACTERS / max(1.0, mean)))]


def sentence_encoder() -> Callable[[Sequence[str]], np.ndarray] | None:
    """Return what makes vectors of unit length of texts, if the default encoder's weights are here already."""
    from smallfirst.models.catalog import find_weights
    from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, open_encoder

    try:
        return open_encoder(find_weights(DEFAULT_ENCODER, download=False)).embed
    except (WeightsNotFound, ModuleNotFoundError):
        return None


def hold_out_labels(
    texts: Sequence[str], labels: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray] | None = None
) -> HeldOut:
    """Return the answers of a ridge regression to the cases of the other folds, left out in closed form.

    It knows words and their parts, and with `embed` sentence vectors. Confidence is the margin over the second label.
    """
    from smallfirst.models.linear.tfidf import TfidfFeatures

    gold = np.unique(labels, return_inverse=True)[1]
    features = TfidfFeatures.fit(texts).matrix(texts)
    kernel = np.asarray((features @ features.T).todense(), dtype=np.float64)
    if embed is not None:
        vectors = np.concatenate([embed(texts[at : at + _BATCH]) for at in range(0, len(texts), _BATCH)])
        kernel += _VECTOR_WEIGHT * (vectors @ vectors.T)
    inverse = np.linalg.inv(kernel + _RIDGE * np.eye(len(kernel)))
    wanted = np.eye(int(gold.max()) + 1)[gold]
    dual = inverse @ (wanted - wanted.mean(axis=0))
    scores = np.zeros_like(wanted)
    for fold in range(FOLDS):
        left_out = np.arange(fold, len(gold), FOLDS)
        scores[left_out] = wanted[left_out] - np.linalg.solve(inverse[np.ix_(left_out, left_out)], dual[left_out])
    ranked = np.sort(scores, axis=1)
    margin = ranked[:, -1] - ranked[:, -2] if ranked.shape[1] > 1 else ranked[:, -1]
    return HeldOut(np.clip(0.5 + 0.5 * margin, 0.0, 1.0), scores.argmax(axis=1) == gold)
