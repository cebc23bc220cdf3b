"""Answers of a cheap model to cases that it did not learn: what a run on the same cases can be expected to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from smallfirst.models.linear.tfidf import TfidfFeatures

ErrorsLeft = tuple[float, float, float]
"""Share of the cheap model's errors that the model of a run makes: at worst, probably, and at best."""
VECTOR_ERRORS, WORD_ERRORS = (1.0, 0.9, 0.7), (1.0, 0.8, 0.5)
"""For a cheap model that knows sentence vectors, and one that knows words alone."""
FOLDS = 3
_RIDGE, _VECTOR_WEIGHT, _BATCH = 1.0, 4.0, 256
Embed = Callable[[Sequence[str]], np.ndarray]
"""Makes vectors of unit length of texts, (texts, dimensions)."""


class HeldOut(NamedTuple):
    """A cheap model's answers to cases that it did not learn."""

    confidence: np.ndarray
    """(cases,), in [0, 1]."""
    right: np.ndarray
    """(cases,), True where the answer is the large model's."""
    n: np.ndarray | None = None
    """(cases,), requests that asked each; None: one each. Shares are of requests, and each case certifies once."""


def hold_out_labels(
    texts: Sequence[str], labels: Sequence[str], said: Sequence[str] | None = None, embed: Embed | None = None
) -> HeldOut:
    """Return the answers of a ridge regression to the cases of the other folds, left out in closed form.

    It learns `labels`; right is what was `said` (None: the labels). It knows words and their parts, and with `embed`
    sentence vectors. Confidence is the margin over the second label.
    """
    both = np.unique([*labels, *(labels if said is None else said)], return_inverse=True)[1]
    gold, right = both[: len(labels)], both[len(labels) :]
    features = TfidfFeatures.fit(texts).matrix(texts)
    kernel = np.asarray((features @ features.T).todense(), dtype=np.float64)
    if embed is not None:
        vectors = np.concatenate([embed(texts[at : at + _BATCH]) for at in range(0, len(texts), _BATCH)])
        kernel += _VECTOR_WEIGHT * (vectors @ vectors.T)
    inverse = np.linalg.inv(kernel + _RIDGE * np.eye(len(kernel)))
    wanted = np.eye(int(both.max()) + 1)[gold]
    dual = inverse @ (wanted - wanted.mean(axis=0))
    scores = np.zeros_like(wanted)
    for fold in range(FOLDS):
        left_out = np.arange(fold, len(gold), FOLDS)
        scores[left_out] = wanted[left_out] - np.linalg.solve(inverse[np.ix_(left_out, left_out)], dual[left_out])
    ranked = np.sort(scores, axis=1)
    margin = ranked[:, -1] - ranked[:, -2] if ranked.shape[1] > 1 else ranked[:, -1]
    return HeldOut(np.clip(0.5 + 0.5 * margin, 0.0, 1.0), scores.argmax(axis=1) == right)
