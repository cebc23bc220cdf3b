"""One score from confidence and distance together: the chance that a request is the task's own and its draft right.

A logistic regression of the log-odds of the draft's confidence and of the domain check's features, no weight of which
may have the wrong sign, so the score never falls with the confidence and never rises with a distance. It is fitted on
selection rows, right against wrong, with foreign requests among the wrong; the certificate's thresholds are searched
on it, so that one threshold decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pydantic
from scipy import optimize, special

from smallfirst.records import Record
from smallfirst.routing.confidence_head import log_odds, means_and_scales

MIN_OWN_ROWS, MIN_FOREIGN_ROWS = 20, 20
"""Own and foreign rows below which nothing is fitted."""
MIN_FOREIGN_WEIGHT = 0.2
"""Share of the weight that foreign rows have in the fit where the guarantee counts on fewer."""
PENALTY = 1e-3
"""Of the squared weights, beside the mean log loss in nats."""


class AcceptanceScore(Record):
    """The fitted score of one drafting stage."""

    weights: tuple[float, ...] = pydantic.Field(min_length=1)
    """Of the draft's log-odds, and of each feature of the domain check with the sign changed; none is negative."""
    intercept: float
    n_own: int
    """Selection rows it was fitted on."""
    n_foreign: int
    """Foreign rows it was fitted on."""

    def confidence(self, draft: float, features: Sequence[float]) -> float:
        """Return the probability in [0, 1] that the request is the task's own and the draft right."""
        own, *others = self.weights
        found = self.intercept + own * log_odds(draft) - math.fsum(w * x for w, x in zip(others, features, strict=True))
        return float(special.expit(found))

    @classmethod
    def fit(
        cls,
        own: tuple[Sequence[float], np.ndarray, Sequence[bool]],
        foreign: tuple[Sequence[float], np.ndarray],
        *,
        share: float = 0.0,
    ) -> AcceptanceScore | None:
        """Fit on confidences in [0, 1], features (rows, features) and, of own rows, whether the draft was right.

        Foreign rows weigh as much as requests of which a share `share` is foreign, at least MIN_FOREIGN_WEIGHT. None
        with too few rows of either kind.
        """
        if len(own[0]) < MIN_OWN_ROWS or len(foreign[0]) < MIN_FOREIGN_ROWS:
            return None
        share = max(share, MIN_FOREIGN_WEIGHT)
        drafts = np.array([log_odds(value) for value in (*own[0], *foreign[0])])
        columns = np.column_stack([drafts, -np.vstack([own[1], foreign[1]])])
        good = np.concatenate([np.asarray(own[2], dtype=float), np.zeros(len(foreign[0]))])
        weight = np.repeat([(1 - share) / len(own[0]), share / len(foreign[0])], [len(own[0]), len(foreign[0])])
        centres, scales = means_and_scales(columns)
        found = _fit_logistic((columns - centres) / scales, good, weight)
        weights = found[1:] / scales
        intercept = float(found[0] - centres @ weights)
        return cls(weights=tuple(weights.tolist()), intercept=intercept, n_own=len(own[0]), n_foreign=len(foreign[0]))


def _fit_logistic(columns: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the intercept and the weights, at least 0, of least weighted log loss."""

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        linear = values[0] + columns @ values[1:]
        residual = weight * (special.expit(linear) - target)
        total = weight @ (np.logaddexp(0, linear) - target * linear) + PENALTY * values[1:] @ values[1:]
        return float(total), np.concatenate([[residual.sum()], columns.T @ residual + 2 * PENALTY * values[1:]])

    start, n = np.zeros(1 + columns.shape[1]), columns.shape[1]
    found: np.ndarray = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(None, None)] + [(0, None)] * n
    ).x
    return found
