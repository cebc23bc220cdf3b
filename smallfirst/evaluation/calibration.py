"""Confidence that means what it says: one temperature, and the error that is left.

A temperature is the smallest possible correction (Guo et al. 2017): it never changes an answer or the order of
confidences, so a certificate does not depend on it. It makes "0.9" mean about nine in ten.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smallfirst.models.scored import tempered


def fit_temperature(log_probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Temperature in [0.25, 8] with the least mean negative log-likelihood.

    log_probabilities (rows, labels) in nats; gold (rows,) label indices.
    """
    from scipy.optimize import minimize_scalar

    if len(gold) == 0:
        return 1.0
    rows = np.arange(len(gold))

    def loss(log_temperature: float) -> float:
        chosen = tempered(log_probabilities, float(np.exp(log_temperature)))[rows, gold]
        return float(-np.log(np.maximum(chosen, 1e-12)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.25), np.log(8.0)), method="bounded")
    return float(np.exp(found.x))


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[bool], *, bins: int = 10) -> float:
    """Mean gap between confidence and accuracy over bins of equal count, in [0, 1].

    The equal-mass form of Naeini et al. 2015.
    """
    if not len(confidence):
        return 0.0
    said, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    order = np.argsort(said, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [len(part) * abs(said[part].mean() - right[part].mean()) for part in parts]
    return float(sum(gaps) / len(said))
