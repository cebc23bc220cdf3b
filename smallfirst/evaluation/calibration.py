"""Confidence that means what it says: a temperature, steps or a few weights, and the error that is left.

For labels a temperature is the smallest possible correction (Guo et al. 2017): it never changes an answer, and makes
"0.9" mean about nine in ten. Rising steps (isotonic regression) bend it further and keep the order too. A written
answer needs more, since its own probability falls with its length: a few features of its tokens are weighed first. The
price: rows to fit it on that no certificate is made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from smallfirst.models.confidence import MIN_LOG_PROBABILITY, Calibration, IsotonicCurve, token_features

MIN_ROWS = 30
"""Rows below which steps or weights would follow chance."""


def fit_temperature(log_probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Temperature in [0.25, 8] with the least mean negative log-likelihood.

    log_probabilities (rows, labels) in nats; gold (rows,) label indices.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    if len(gold) == 0:
        return 1.0
    nats = np.maximum(
        log_probabilities, MIN_LOG_PROBABILITY
    )  # an impossible label that is right must leave the loss finite
    rows = np.arange(len(gold))

    def loss(log_temperature: float) -> float:
        scaled = nats / float(np.exp(log_temperature))
        return float((logsumexp(scaled, axis=1) - scaled[rows, gold]).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.25), np.log(8.0)), method="bounded")
    return float(np.exp(found.x))


def fit_isotonic(confidence: Sequence[float], correct: Sequence[bool]) -> IsotonicCurve:
    """Rising steps from a confidence or score to the share of right answers (isotonic regression).

    One wrong answer surer than all and one right answer less sure than all are added, so that no step claims certainty:
    n right answers in the top step give n / (n + 1). No steps below 30 rows or where all are right or all wrong. Raises
    ValueError if the lengths differ.
    """
    from sklearn.isotonic import IsotonicRegression

    said, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    _same_number(said, right)
    if _shows_nothing(right):
        return IsotonicCurve()
    low, high = float(said.min()), float(said.max())
    edge = max(1e-9, 1e-9 * (high - low))  # a row at exactly the end would be averaged with those there
    x = np.concatenate([[low - edge], said, [high + edge]])
    fitted = IsotonicRegression(y_min=0, y_max=1).fit(x, np.concatenate([[1.0], right, [0.0]]))
    return IsotonicCurve(x=tuple(fitted.X_thresholds_.tolist()), y=tuple(fitted.y_thresholds_.tolist()))


def fit_calibration(log_probabilities: Sequence[Sequence[float]], correct: Sequence[bool]) -> Calibration:
    """The Calibration of written answers from each one's token log-probabilities in nats and whether it was right.

    Logistic regression (L2) on the standardised features gives a score, isotonic steps turn it into a probability. The
    features are weighed only where that foretells held-out rows better than the answer's own probability does
    (5-fold log loss); else, and with fewer than ten right or ten wrong answers, steps over the own probability alone.
    Unfitted below 30 rows or where all are right or all wrong. Raises ValueError if the lengths differ.
    """
    right = np.asarray(correct, dtype=bool)
    _same_number(log_probabilities, right)
    if _shows_nothing(right):
        return Calibration()
    features = np.array([token_features(answer) for answer in log_probabilities])
    centres, spread = features.mean(axis=0), features.std(axis=0)
    scales = np.where(spread > 1e-9, spread, 1.0)
    standard = (features - centres) / scales
    weights = np.eye(len(Calibration.FEATURES))[Calibration.FEATURES.index("sum")]
    if min(right.sum(), (~right).sum()) >= 10 and _all_features_help(standard, right):
        weights = _logistic().fit(standard, right).coef_[0]
    return Calibration(
        weights=tuple(weights.tolist()),
        centres=tuple(centres.tolist()),
        scales=tuple(scales.tolist()),
        steps=fit_isotonic((standard @ weights).tolist(), correct),
        n_rows=len(right),
    )


def _all_features_help(standard: np.ndarray, right: np.ndarray) -> bool:
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    own = standard[:, [Calibration.FEATURES.index("sum")]]
    alone, together = (
        cross_val_score(_logistic(), x, right, cv=folds, scoring="neg_log_loss").mean() for x in (own, standard)
    )
    return bool(together > alone)


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1.0, max_iter=1000)


def _shows_nothing(right: np.ndarray) -> bool:
    """True for rows too few to follow, or of one kind: nothing to part."""
    return len(right) < MIN_ROWS or right.min() == right.max()


def _same_number(said: Sequence[object] | np.ndarray, right: np.ndarray) -> None:
    if len(said) != len(right):
        raise ValueError(f"confidences and outcomes differ in number: {len(said)} and {len(right)}")


def brier_score(confidence: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean squared distance of confidence from 1 for right and 0 for wrong answers, in [0, 1] (Brier 1950).

    It counts both how honest confidences are and how well they part right from wrong. 0 without rows. Raises ValueError
    if the lengths differ.
    """
    said, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    _same_number(said, right)
    return float(np.mean((said - right) ** 2)) if said.size else 0.0


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[bool], *, bins: int = 10) -> float:
    """Mean gap between confidence and accuracy over bins of equal count, in [0, 1]; 0 without rows.

    The equal-mass form of Naeini et al. 2015. Never 0 by chance alone: a perfectly honest model shows about
    0.8 × √(bins × mean p(1 - p) / rows). Raises ValueError if the lengths differ.
    """
    said, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    _same_number(said, right)
    gaps = [len(rows) * abs(said[rows].mean() - right[rows].mean()) for rows in equal_count_bins(said, bins)]
    return float(sum(gaps) / max(1, len(said)))


def equal_count_bins(confidence: Sequence[float] | np.ndarray, bins: int) -> list[np.ndarray]:
    """Row indices by bin, the least confident bin first, of about equal count and at most `bins`.

    Rows of equal confidence share a bin, so that a result never depends on the order of rows.
    """
    said = np.asarray(confidence, dtype=np.float64)
    order = np.argsort(said, kind="stable")
    ends = np.cumsum([len(part) for part in np.array_split(order, bins)])
    ends = np.searchsorted(said[order], said[order][ends[ends > 0] - 1], side="right")
    return [part for part in np.split(order, np.unique(ends)) if len(part)]
