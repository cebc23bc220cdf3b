"""From the token probabilities of a written answer to the probability that it is right.

What a decoder says of its own words is a good order and a bad number: a long answer looks doubtful whatever it says.
A Calibration weighs a few features of the tokens' log-probabilities, then reads the probability off rising steps, both
fitted on validation rows (`smallfirst.evaluation.calibration`). The price is those rows: with fewer than 30, or none
that is wrong, nothing is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pydantic

from smallfirst.records import Record

FEATURES = ("sum", "mean", "lowest", "n_tokens")
"""What is looked at in an answer's tokens: sum, mean and lowest of their log-probabilities, and how many there are."""
LOWEST = -100.0
"""Log-probability in nats below which a token is not told apart from an impossible one."""
TIE_BREAK = 1e-3
"""Share of a calibrated probability that only keeps the order within one step."""


class IsotonicCurve(Record):
    """A rising line through knots: isotonic regression as plain numbers. Without knots it changes nothing."""

    x: tuple[float, ...] = ()
    """Where the line has its knots, rising."""
    y: tuple[float, ...] = ()
    """Probability in [0, 1] at each knot, never falling."""

    @pydantic.model_validator(mode="after")
    def _rises(self) -> IsotonicCurve:
        if len(self.x) != len(self.y):
            raise ValueError(f"x and y must be equally long (got {len(self.x)} and {len(self.y)})")
        if list(self.x) != sorted(self.x) or list(self.y) != sorted(self.y):
            raise ValueError("x and y must never fall")
        if self.y and not 0 <= self.y[0] <= self.y[-1] <= 1:
            raise ValueError(f"y must lie in [0, 1] (got {self.y[0]:g} to {self.y[-1]:g})")
        return self

    def at(self, value: float) -> float:
        """Probability in [0, 1] at `value`; outside the knots it stays at the outermost one.

        A thousandth of it rises with `value` everywhere, so that a certificate can still part the rows of a flat step.
        """
        if not self.x:
            return value
        rising = 0.5 + 0.5 * value / (1 + abs(value))
        return (1 - TIE_BREAK) * float(np.interp(value, self.x, self.y)) + TIE_BREAK * rising


class Calibration(Record):
    """From an answer's tokens to a probability of being right; unfitted it gives the answer's own probability."""

    weights: tuple[float, ...] = ()
    """One per feature, on features less their centre over their scale; empty while unfitted."""
    centres: tuple[float, ...] = ()
    """Mean of each feature on the rows it was fitted on."""
    scales: tuple[float, ...] = ()
    """Standard deviation of each feature there; 1 where it never differs."""
    steps: IsotonicCurve = IsotonicCurve()
    """From the weighted sum to the probability."""
    n_rows: int = 0
    """Rows it was fitted on."""

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Calibration:
        check_fitted(self.weights, self.centres, self.scales, self.steps, FEATURES)
        return self

    def confidence(self, log_probabilities: Sequence[float]) -> float:
        """Probability in [0, 1] from the log-probability in nats of each written token (end of turn included)."""
        features = features_of(log_probabilities)
        if not self.weights:
            return min(1.0, math.exp(features[FEATURES.index("sum")]))
        return self.steps.at(self.score(features))

    def score(self, features: Sequence[float]) -> float:
        """The weighted sum of one answer's features, which the steps turn into a probability; higher is surer."""
        parts = zip(self.weights, features, self.centres, self.scales, strict=True)
        return math.fsum(weight * (feature - centre) / scale for weight, feature, centre, scale in parts)


def check_fitted(
    weights: Sequence[float],
    centres: Sequence[float],
    scales: Sequence[float],
    steps: IsotonicCurve,
    features: Sequence[str],
) -> None:
    """Nothing if weights, centres and scales have one number a feature, or all of them none. Raises ValueError."""
    wanted = len(features) if weights else 0
    for name, values in (("weights", weights), ("centres", centres), ("scales", scales)):
        if len(values) != wanted:
            raise ValueError(f"{name} must hold one number for each of {', '.join(features)} (got {len(values)})")
    if not all(scale > 0 for scale in scales):
        raise ValueError(f"scales must be above 0 (got {', '.join(f'{scale:g}' for scale in scales)})")
    if bool(weights) != bool(steps.x):
        raise ValueError("weights and steps are fitted together: both or neither")


def features_of(log_probabilities: Sequence[float]) -> tuple[float, ...]:
    """One number for each of FEATURES, from the log-probability in nats of each written token.

    No token at all counts as an impossible one: nothing was said that one could be sure of.
    """
    nats = [max(value, LOWEST) for value in log_probabilities] or [LOWEST]
    total = math.fsum(nats)
    return total, total / len(nats), min(nats), float(len(log_probabilities))
