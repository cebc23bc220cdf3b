"""How well confidence parts right answers from wrong ones: what a router can gain from it.

Keeping only the surest answers lowers the error among them; the curve of error against the share kept is what a
certificate reads its threshold from, and its area sums it up. Only the order of confidences counts here; whether their
values are honest is calibration. Answers of equal confidence are kept together or not at all, since no threshold parts
them. A row without a confidence is never kept by a threshold, hence the least sure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats as scipy_stats

from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, bootstrap, wilson

Confidences = Sequence[float | None]


class RiskCoveragePoint(Record):
    """Error when only the surest share of answers is kept."""

    coverage: float
    """Share kept, in [0, 1]."""
    error: Estimate
    """Error among the kept."""
    confidence: float
    """Confidence of the least sure answer kept: the threshold that gives this point."""


def risk_coverage_curve(
    confidence: Confidences, correct: Sequence[bool], *, n_points: int = 60
) -> tuple[RiskCoveragePoint, ...]:
    """Error by share kept, from the surest answers to all that have a confidence; empty if none has one."""
    said, wrong = _by_confidence(confidence, correct)
    sure = int(np.isfinite(said).sum())
    errors = np.cumsum(wrong)
    counts = {_whole_ties(said, max(1, round(sure * i / n_points))) for i in range(1, n_points + 1)} if sure else set()
    return tuple(
        RiskCoveragePoint(
            coverage=count / len(said),
            error=wilson(int(errors[count - 1]), count),
            confidence=float(said[count - 1]),
        )
        for count in sorted(counts)
    )


def selective_accuracy(confidence: Confidences, correct: Sequence[bool], *, coverage: float) -> Estimate:
    """Share right among the surest `coverage` of all rows (at least one, ties whole), with Wilson's interval.

    Its `n` says how many that are: fewer where rows have no confidence, more where confidences are equal.
    """
    said, wrong = _by_confidence(confidence, correct)
    sure = int(np.isfinite(said).sum())
    if not sure:
        return wilson(0, 0)
    count = _whole_ties(said, min(sure, max(1, round(coverage * len(said)))))
    return wilson(count - int(wrong[:count].sum()), count)


def area_under_risk_coverage(confidence: Confidences, correct: Sequence[bool]) -> Estimate:
    """Mean error over keeping the surest 1, 2, … n rows, in [0, 1], with a bootstrap interval; lower is better.

    Errors among equal confidences are spread evenly over them, so the area does not depend on the order of rows.
    """
    return _resampled(_area, confidence, correct)


def auroc(confidence: Confidences, correct: Sequence[bool]) -> Estimate | None:
    """Probability that a right answer is surer than a wrong one, ties half, with a bootstrap interval; 0.5 is chance.

    None if all answers are right or all are wrong: there is nothing to part. A resample of that kind counts as 0.5,
    which widens the interval where errors are few.
    """
    _, wrong = _by_confidence(confidence, correct)
    if wrong.all() or not wrong.any():
        return None
    return _resampled(_ordered_pairs, confidence, correct)


def _resampled(
    figure: Callable[[np.ndarray, np.ndarray], float], confidence: Confidences, correct: Sequence[bool]
) -> Estimate:
    said, wrong = _by_confidence(confidence, correct)
    return bootstrap(lambda rows: figure(said[np.sort(rows)], wrong[np.sort(rows)]), len(said))


def _area(said: np.ndarray, wrong: np.ndarray) -> float:
    """Area for rows already in order, the surest first."""
    ends = np.flatnonzero(np.append(said[1:] != said[:-1], True))
    sizes = np.diff(ends, prepend=-1)
    errors = np.diff(np.cumsum(wrong)[ends], prepend=0)
    spread = np.repeat(errors / sizes, sizes)
    return float((np.cumsum(spread) / np.arange(1, len(said) + 1)).mean())


def _ordered_pairs(said: np.ndarray, wrong: np.ndarray) -> float:
    n_wrong = int(wrong.sum())
    n_right = len(wrong) - n_wrong
    if not n_wrong or not n_right:
        return 0.5
    ranks = scipy_stats.rankdata(said)
    return float((ranks[~wrong].sum() - n_right * (n_right + 1) / 2) / (n_right * n_wrong))


def _by_confidence(confidence: Confidences, correct: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and errors, the surest first; no confidence is minus infinity.

    Raises ValueError if the lengths differ.
    """
    if len(confidence) != len(correct):
        raise ValueError(f"confidences and outcomes differ in number: {len(confidence)} and {len(correct)}")
    said = np.array([-np.inf if value is None else value for value in confidence], dtype=np.float64)
    order = np.argsort(-said, kind="stable")
    return said[order], ~np.asarray(correct, dtype=bool)[order]


def _whole_ties(said: np.ndarray, count: int) -> int:
    """`count` and as many more of the ordered rows as share the last confidence."""
    return int(np.searchsorted(-said, -said[count - 1], side="right"))
