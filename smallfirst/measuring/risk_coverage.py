"""How well confidence separates right answers from wrong ones: what a router can gain from it.

Answers of equal confidence are accepted together; a row without a confidence counts as the least confident.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats as scipy_stats

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, bootstrap, wilson

Confidences = Sequence[float | None]


class RiskCoveragePoint(Record):
    """Error when only the most confident share of answers is accepted."""

    coverage: float
    """Share accepted, in [0, 1]."""
    error: Estimate
    confidence: float
    """Confidence of the least confident answer accepted: the threshold that gives this point."""


def risk_coverage_curve(
    confidence: Confidences, correct: Sequence[bool], *, n_points: int = 60
) -> tuple[RiskCoveragePoint, ...]:
    """Return the error by share accepted, most confident first; empty if no answer has a confidence."""
    ordered, wrong = _by_confidence(confidence, correct)
    n_known = int(np.isfinite(ordered).sum())
    errors = np.cumsum(wrong)
    wanted = [max(1, round(n_known * i / n_points)) for i in range(1, n_points + 1)] if n_known else []
    counts = sorted({int(np.searchsorted(-ordered, -ordered[count - 1], side="right")) for count in wanted})
    return tuple(
        RiskCoveragePoint(
            coverage=count / len(ordered),
            error=wilson(int(errors[count - 1]), count),
            confidence=float(ordered[count - 1]),
        )
        for count in counts
    )


def auroc(confidence: Confidences, correct: Sequence[bool]) -> Estimate | None:
    """Return the probability that a right answer has more confidence than a wrong one, ties half; 0.5 is chance.

    The interval is a bootstrap; a resample without right or without wrong answers counts as 0.5, which widens it where
    errors are few. None if all answers are right or all are wrong. Raises ValueError if the lengths differ.
    """
    ordered, wrong = _by_confidence(confidence, correct)
    if wrong.all() or not wrong.any():
        return None
    return bootstrap(lambda rows: _ordered_pairs(ordered[rows], wrong[rows]), len(ordered))


def _ordered_pairs(confidence: np.ndarray, wrong: np.ndarray) -> float:
    n_wrong = int(wrong.sum())
    n_right = len(wrong) - n_wrong
    if not n_wrong or not n_right:
        return 0.5
    ranks = scipy_stats.rankdata(confidence)
    return float((ranks[~wrong].sum() - n_right * (n_right + 1) / 2) / (n_right * n_wrong))


def _by_confidence(confidence: Confidences, correct: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences and errors, most confident first; no confidence is minus infinity."""
    if len(confidence) != len(correct):
        raise ValueError(f"confidences and outcomes differ in number: {len(confidence)} and {len(correct)}")
    known = np.array([-np.inf if value is None else value for value in confidence], dtype=np.float64)
    order = np.argsort(-known, kind="stable")
    return known[order], ~np.asarray(correct, dtype=bool)[order]
