"""Turn scores of any scale into one out-of-domain score in [0, 1] by their ranks among a task's own selection rows.

1 minus a conformal p-value (Vovk et al. 2005): a threshold of 0.97 keeps at least 97 % of the task's own requests.
Several scores are combined as Fisher (1925) combines p-values. The selection rows must not be used for any other
guarantee.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pydantic

from smallfirst.records import Record

KNOTS = 1000
"""Selection rows whose scores are stored; of more, evenly spaced ones."""


class ConformalScorer(Record):
    """Scores of the task's own selection rows, to rank others among. Larger scores are less ordinary."""

    own: tuple[float, ...] = pydantic.Field(min_length=1)
    """In ascending order."""

    @classmethod
    def fit(cls, scores: np.ndarray) -> ConformalScorer:
        ascending = np.sort(np.asarray(scores, dtype=np.float64))
        if len(ascending) > KNOTS:  # the largest stays, and each knot stands for as many rows
            ascending = ascending[np.ceil(np.arange(1, KNOTS + 1) * len(ascending) / KNOTS).astype(int) - 1]
        return cls(own=tuple(ascending.tolist()))

    def neg_log_p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return each score's -log p-value in nats; beyond the own scores p falls exponentially."""
        own, scale = self._curve
        asked = np.asarray(scores, dtype=np.float64)
        at_least = len(own) - np.searchsorted(own, asked, side="left")
        beyond = np.maximum(asked - own[-1], 0) / scale
        nats: np.ndarray = np.log(len(own) + 1) - np.log(at_least + 1) + beyond
        return nats

    @cached_property
    def _curve(self) -> tuple[np.ndarray, float]:
        """The own scores, and the mean excess of the largest tenth of them, in which p falls beyond them."""
        own = np.asarray(self.own)
        upper = own[int(0.9 * (len(own) - 1)) :]
        return own, max(float((upper - upper[0]).mean()), 1e-9 * max(1.0, abs(float(own[-1]))))

    def ood_score(self, scores: np.ndarray) -> np.ndarray:
        """Return 1 - p for each score; at most a share 1 - x of the task's own rows gets more than x."""
        found: np.ndarray = -np.expm1(-self.neg_log_p_values(scores))
        return found


class ScoreFusion(Record):
    """Combine several scores of a text into one."""

    ranks: tuple[ConformalScorer, ...]
    fused: ConformalScorer
    """Of the sum of their -log p-values."""

    @classmethod
    def fit(cls, own: np.ndarray) -> ScoreFusion:
        """Fit on the scores (rows, scores) of selection rows."""
        ranks = tuple(ConformalScorer.fit(column) for column in own.T)
        return cls(ranks=ranks, fused=ConformalScorer.fit(_neg_log_p_values(ranks, own).sum(axis=1)))

    def nonconformity(self, scores: np.ndarray) -> np.ndarray:
        total: np.ndarray = self.neg_log_p_values(scores).sum(axis=1)
        return total

    def neg_log_p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return each score's -log p-value in nats (rows, scores)."""
        return _neg_log_p_values(self.ranks, scores)

    def ood_score(self, scores: np.ndarray) -> np.ndarray:
        return self.fused.ood_score(self.nonconformity(scores))


def _neg_log_p_values(ranks: Sequence[ConformalScorer], scores: np.ndarray) -> np.ndarray:
    return np.column_stack([one.neg_log_p_values(column) for one, column in zip(ranks, scores.T, strict=True)])
