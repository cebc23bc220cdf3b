"""The chance that a request is the task's own and its draft right, from the draft's confidence and the domain check.

A logistic regression of the log-odds of the confidence and of the domain check's features, fitted on selection rows and
foreign rows. No weight may have the wrong sign, so the score never falls with the confidence and never rises with a
distance. The certificate's thresholds are searched on it, so that one threshold decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydantic
from scipy import optimize, special

from smallfirst.base.records import Record
from smallfirst.data.dataset import Dataset, Example, Message, sample_share

MIN_PROBABILITY = 1e-6
"""Probabilities are clipped to this distance from 0 and 1."""
MIN_OWN_ROWS, MIN_FOREIGN_ROWS = 20, 20
"""Own and foreign rows below which nothing is fitted."""
MIN_FOREIGN_WEIGHT = 0.2
"""Share of the weight that foreign rows have in the fit where the guarantee counts on fewer."""
PENALTY = 1e-3
"""Of the squared weights, beside the mean log loss in nats."""
BUNDLED = Path(__file__).with_name("open_requests.txt")
"""Generic requests that people send to any assistant, one a line."""


def log_odds(probability: float) -> float:
    """Return log(p / (1 - p)), with p clipped to 1e-6 from 0 and 1."""
    p = min(max(probability, MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    return math.log(p / (1 - p))


def means_and_scales(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column; 1 where it is constant."""
    spread = features.std(axis=0)
    return features.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)


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


def foreign_rows(open_ended: Dataset | None) -> tuple[Dataset, Dataset]:
    """Return the foreign rows to fit on and those to certify with; without `open_ended` both are bundled requests.

    Those of a task file are like what its users send, so with them the bundled ones are for fitting alone.
    """
    bundled = bundled_requests()
    if open_ended is None:
        return split_foreign(bundled)
    fitting, certifying = split_foreign(open_ended)
    return fitting.subset("foreign", (*fitting.examples, *bundled.examples)), certifying


def split_foreign(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Return two halves by content hash."""
    return sample_share(rows, 0.5, "domain")


def bundled_requests() -> Dataset:
    """Return the generic requests that the package brings."""
    lines = BUNDLED.read_text(encoding="utf-8").splitlines()
    return Dataset(
        name="open requests",
        examples=tuple(
            Example(messages=(Message(role="user", content=text),), answer="", shape="text", path=BUNDLED.name, line=i)
            for i, text in enumerate(lines, 1)
        ),
    )
