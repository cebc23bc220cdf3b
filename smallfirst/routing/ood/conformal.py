"""How unusual a text is among a task's own: scores of any scale turned into one doubt in [0, 1].

The doubt is one less a conformal p-value (Vovk et al. 2005): the share of the task's selection rows that look more
ordinary than the text. So a limit of 0.97 keeps at least 97 % of the task's own requests, whatever the scores are, as
long as requests come from where the selection rows came from. Scores are fused as Fisher (1925) combines p-values where
no foreign texts are known, and by a logistic layer where some are; the fused score is ranked anew, so that the promise
holds for it too. What it costs: some selection rows that nothing else is promised on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pydantic

from smallfirst.records import Record

KNOTS = 1000
"""Selection rows whose scores are kept; of more, evenly spaced ones."""
MIN_FOREIGN_ROWS = 10
"""Foreign rows below which no weights are fitted."""


class ConformalScorer(Record):
    """Scores of the task's own selection rows, and with them the doubt of any score. Larger scores are stranger."""

    own: tuple[float, ...] = pydantic.Field(min_length=1)
    """Rising."""

    @classmethod
    def fit(cls, scores: np.ndarray) -> ConformalScorer:
        """From the scores of selection rows; at least one."""
        rising = np.sort(np.asarray(scores, dtype=np.float64))
        if len(rising) > KNOTS:  # the largest stays, and each knot speaks for as many rows
            rising = rising[np.ceil(np.arange(1, KNOTS + 1) * len(rising) / KNOTS).astype(int) - 1]
        return cls(own=tuple(rising.tolist()))

    def nats(self, scores: np.ndarray) -> np.ndarray:
        """Minus the logarithm of the p-value, 0 for the most ordinary.

        A score above all n own ones has p = 1/(n + 1); beyond, p falls on exponentially as the scores of the strangest
        tenth do, so that strange and stranger are told apart and a few rows are enough to turn away the very strange.
        """
        own, asked = np.asarray(self.own), np.asarray(scores, dtype=np.float64)
        at_least = len(own) - np.searchsorted(own, asked, side="left")
        upper = own[int(0.9 * (len(own) - 1)) :]
        scale = max(float((upper - upper[0]).mean()), 1e-9 * max(1.0, abs(float(own[-1]))))
        beyond = np.maximum(asked - own[-1], 0) / scale
        nats: np.ndarray = np.log(len(own) + 1) - np.log(at_least + 1) + beyond
        return nats

    def doubt(self, scores: np.ndarray) -> np.ndarray:
        """In [0, 1]: of the task's own rows a share of at most 1 - x has a doubt above x."""
        doubt: np.ndarray = -np.expm1(-self.nats(scores))
        return doubt


class ScoreFusion(Record):
    """Several scores of a text as one doubt."""

    ranks: tuple[ConformalScorer, ...]
    """One per score."""
    weights: tuple[float, ...]
    """What each score's nats count."""
    fused: ConformalScorer
    """Of the weighted sum."""

    @classmethod
    def fit(cls, own: np.ndarray, foreign: np.ndarray | None = None) -> ScoreFusion:
        """From the scores (rows, scores) of selection rows, and of foreign ones if there are any.

        Without foreign rows every score counts the same. With ten or more a logistic regression weighs them, both sides
        as heavy; a weight below 0 is set to 0, since no score may make a strange text ordinary.
        """
        ranks = tuple(ConformalScorer.fit(column) for column in own.T)
        nats = _nats(ranks, own)
        weights = np.ones(len(ranks))
        if foreign is not None and len(foreign) >= MIN_FOREIGN_ROWS:
            weights = _weigh(nats, _nats(ranks, foreign))
        return cls(ranks=ranks, weights=tuple(weights.tolist()), fused=ConformalScorer.fit(nats @ weights))

    def nonconformity(self, scores: np.ndarray) -> np.ndarray:
        """The weighted sum of the nats of scores (rows, scores)."""
        total: np.ndarray = _nats(self.ranks, scores) @ np.asarray(self.weights)
        return total

    def doubt(self, scores: np.ndarray) -> np.ndarray:
        """In [0, 1] for each row of scores (rows, scores)."""
        return self.fused.doubt(self.nonconformity(scores))


def _nats(ranks: Sequence[ConformalScorer], scores: np.ndarray) -> np.ndarray:
    return np.column_stack([one.nats(column) for one, column in zip(ranks, scores.T, strict=True)])


def _weigh(own: np.ndarray, foreign: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression of foreign against own nats; all alike if none helps."""
    from sklearn.linear_model import LogisticRegression

    features, is_foreign = np.vstack([own, foreign]), np.repeat([0, 1], [len(own), len(foreign)])
    fitted = LogisticRegression(class_weight="balanced").fit(features, is_foreign)
    weights: np.ndarray = np.maximum(fitted.coef_[0], 0)
    return weights if weights.any() else np.ones(own.shape[1])
