"""Calibrated confidence: from the log-probabilities of an answer to the probability that it is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from smallfirst.base.records import Record

MIN_LOG_PROBABILITY = -100.0
"""In nats; a less likely token counts as impossible."""
TIE_BREAK = 1e-3
"""Share of a calibrated probability that only keeps the order within one step."""


class IsotonicCurve(Record):
    """A rising piecewise linear curve: isotonic regression as plain numbers. Without knots it is the identity."""

    x: tuple[float, ...] = ()
    """The knots, rising."""
    y: tuple[float, ...] = ()
    """Probability in [0, 1] at each knot, never falling."""

    def at(self, value: float) -> float:
        """Return the probability in [0, 1] at `value`; a thousandth of it rises everywhere, to tell tied rows apart."""
        return float(self.at_each(np.array([value]))[0])

    def at_each(self, values: np.ndarray) -> np.ndarray:
        if not self.x:
            return values
        rising = 0.5 + 0.5 * values / (1 + np.abs(values))
        found: np.ndarray = (1 - TIE_BREAK) * np.interp(values, self.x, self.y) + TIE_BREAK * rising
        return found


class Calibration(Record):
    """From an answer's log-probabilities to the probability that it is right.

    A linear score of standardised features (`token_features`), and the isotonic curve that makes it a probability.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ("sum", "mean", "lowest", "n_tokens")

    weights: tuple[float, ...] = ()
    """One for each of FEATURES; empty while unfitted."""
    centres: tuple[float, ...] = ()
    """Mean of each feature on the rows of the fit."""
    scales: tuple[float, ...] = ()
    """Standard deviation of each feature there; 1 where it is constant."""
    steps: IsotonicCurve = IsotonicCurve()
    """From the score to the probability."""
    n_rows: int = 0

    def confidence(self, log_probabilities: Sequence[float]) -> float:
        """Return the probability in [0, 1] from each token's log-probability in nats; unfitted, the answer's own."""
        features = token_features(log_probabilities)
        if not self.weights:
            return min(1.0, math.exp(features[0]))
        parts = zip(self.weights, features, self.centres, self.scales, strict=True)
        return self.steps.at(math.fsum(weight * (feature - centre) / scale for weight, feature, centre, scale in parts))


def token_features(log_probabilities: Sequence[float]) -> tuple[float, ...]:
    """Return sum, mean, minimum and number of log-probabilities in nats; no token counts as one impossible token."""
    nats = [max(value, MIN_LOG_PROBABILITY) for value in log_probabilities] or [MIN_LOG_PROBABILITY]
    total = math.fsum(nats)
    return total, total / len(nats), min(nats), float(len(log_probabilities))
