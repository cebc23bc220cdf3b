"""Confidence: calibrated by a temperature (Guo et al. 2017), isotonic steps or token features, and what it is worth.

All of it is fitted on rows that no certificate is made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from smallfirst.base.errors import DataError, Problem
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.data.dataset import Dataset, Example
from smallfirst.models.confidence import MIN_LOG_PROBABILITY, Calibration, IsotonicCurve, token_features
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.linear.classifier import answer_labels, decision_nats
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.task import Task

MIN_ROWS = 30
"""With fewer rows, steps or weights would follow chance."""
THRESHOLDS = (0.5, 0.45, 0.55, 0.4, 0.6, 0.35, 0.65, 0.3, 0.7, 0.25, 0.2, 0.15)
"""Least probabilities of a label that are tried; of equally good ones the first is taken."""


def fit_temperature(log_probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Return the temperature in [0.25, 8] of least loss for (rows, labels) nats and (rows,) gold; 1 without rows."""
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


def accuracy_and_temperature(scored: Sequence[LabelLogProbs], data: Dataset, task: Task) -> tuple[float, float]:
    """Return accuracy and fitted temperature of the labels. Raise DataError naming rows whose label is unknown."""
    if not len(data):
        return 0.0, 1.0
    index = {label: i for i, label in enumerate(task.closed)}
    unknown = [Problem(e.path, e.line, f'unknown label "{e.answer}"') for e in data.examples if e.answer not in index]
    if unknown:
        raise DataError(f"{len(unknown)} of {len(data)} selection rows have a label that the task does not:", unknown)
    gold = np.array([index[example.answer] for example in data.examples])
    log_probabilities = np.array([row.log_probabilities for row in scored])
    accuracy = float((log_probabilities.argmax(axis=1) == gold).mean())
    return accuracy, fit_temperature(log_probabilities, gold)


def calibrate_labels(scored: Sequence[LabelLogProbs], data: Dataset, manifest: Manifest) -> tuple[float, Manifest]:
    """Return the mean score in [0, 1] on selection rows, and the manifest with what was fitted on them.

    For one label a temperature; for several the threshold with the highest score and the calibration of the whole
    list's confidence. Raise DataError naming rows whose label is unknown.
    """
    task = manifest.task
    if task.closed or not len(data):
        accuracy, temperature = accuracy_and_temperature(scored, data, task)
        return accuracy, manifest.model_copy(update={"temperature": temperature})
    odds = [np.asarray(row.log_probabilities, dtype=np.float64) for row in scored]

    def scores(threshold: float) -> list[float]:
        answers = [answer_labels(row, task, threshold) for row in odds]
        return [task.score(example.golds, answer) for example, answer in zip(data.examples, answers, strict=True)]

    best = max(THRESHOLDS, key=lambda threshold: sum(scores(threshold)))
    found = scores(best)
    correct = [score >= task.pass_score for score in found]
    calibration = fit_calibration([decision_nats(row, best).tolist() for row in odds], correct)
    fitted = {"label_threshold": best, "calibration": calibration}
    return float(np.mean(found)), manifest.model_copy(update=fitted)


def calibrate_answers(
    manifest: Manifest,
    examples: Sequence[Example],
    answers: Sequence[tuple[str, Sequence[float]]],
    *,
    graded: bool = True,
) -> tuple[float, Manifest]:
    """Return the mean score of answers in [0, 1], or the share of right ones, and the manifest with a calibration.

    It is that of the answers' log-probabilities in nats.
    """
    task = manifest.task
    scores = [task.score(e.golds, task.parse(text)) for e, (text, _) in zip(examples, answers, strict=True)]
    right = [score >= task.pass_score for score in scores]
    calibration = fit_calibration([nats for _, nats in answers], right)
    value = float(np.mean(scores if graded else right)) if scores else 0.0
    return value, manifest.model_copy(update={"calibration": calibration})


def fit_isotonic(confidence: Sequence[float], correct: Sequence[bool]) -> IsotonicCurve:
    """Fit rising steps from a confidence or score to the share of right answers (isotonic regression).

    A wrong answer above all others and a right one below all are added, so that no step claims certainty: n right
    answers in the top step give n / (n + 1). Returns no steps below 30 rows or where all are right or all wrong. Raises
    ValueError if the lengths differ.
    """
    from sklearn.isotonic import IsotonicRegression

    confidences, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    _check_lengths(confidences, right)
    if _too_few(right):
        return IsotonicCurve()
    low, high = float(confidences.min()), float(confidences.max())
    edge = max(1e-9, 1e-9 * (high - low))  # a row at exactly the end would be averaged with those there
    x = np.concatenate([[low - edge], confidences, [high + edge]])
    fitted = IsotonicRegression(y_min=0, y_max=1).fit(x, np.concatenate([[1.0], right, [0.0]]))
    return IsotonicCurve(x=tuple(fitted.X_thresholds_.tolist()), y=tuple(fitted.y_thresholds_.tolist()))


def fit_calibration(log_probabilities: Sequence[Sequence[float]], correct: Sequence[bool]) -> Calibration:
    """Fit the Calibration of generated answers from their token log-probabilities in nats and whether they were right.

    Logistic regression (L2) on the standardized features gives a score, isotonic steps turn it into a probability. The
    features are used only where they predict held-out rows better than the answer's own probability does (5-fold log
    loss); else, and with fewer than ten right or ten wrong answers, the steps are over the own probability alone.
    Unfitted below 30 rows or where all are right or all wrong. Raises ValueError if the lengths differ.
    """
    right = np.asarray(correct, dtype=bool)
    _check_lengths(log_probabilities, right)
    if _too_few(right):
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


def _too_few(right: np.ndarray) -> bool:
    return len(right) < MIN_ROWS or right.min() == right.max()


def _check_lengths(confidences: Sequence[object] | np.ndarray, right: np.ndarray) -> None:
    if len(confidences) != len(right):
        raise ValueError(f"confidences and outcomes differ in number: {len(confidences)} and {len(right)}")


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[bool], *, bins: int = 10) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal count, in [0, 1]; 0 without rows.

    The equal-mass form of Naeini et al. 2015. A perfectly calibrated model still shows about
    0.8 × √(bins × mean p(1 - p) / rows) by chance. Raises ValueError if the lengths differ.
    """
    confidences, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    _check_lengths(confidences, right)
    gaps = [
        len(rows) * abs(confidences[rows].mean() - right[rows].mean()) for rows in equal_count_bins(confidences, bins)
    ]
    return float(sum(gaps) / max(1, len(confidences)))


def equal_count_bins(confidence: Sequence[float] | np.ndarray, bins: int) -> list[np.ndarray]:
    """Return the row indices of at most `bins` bins of about equal count, ties together, the least confident first."""
    confidences = np.asarray(confidence, dtype=np.float64)
    order = np.argsort(confidences, kind="stable")
    ends = np.cumsum([len(part) for part in np.array_split(order, bins)])
    ends = np.searchsorted(confidences[order], confidences[order][ends[ends > 0] - 1], side="right")
    return [part for part in np.split(order, np.unique(ends)) if len(part)]


class RiskCoveragePoint(Record):
    """Error when only the most confident share of answers is accepted."""

    coverage: float
    """Share accepted, in [0, 1]."""
    error: Estimate
    confidence: float
    """Confidence of the least confident answer accepted: the threshold that gives this point."""


def risk_coverage_curve(
    confidence: Sequence[float | None], correct: Sequence[bool], *, n_points: int = 60
) -> tuple[RiskCoveragePoint, ...]:
    """Return the error by share accepted, most confident first; empty if no answer has a confidence.

    Answers of equal confidence are accepted together, those without one last.
    """
    right = np.asarray(correct, dtype=bool)
    _check_lengths(confidence, right)
    known = np.array([-np.inf if value is None else value for value in confidence], dtype=np.float64)
    order = np.argsort(-known, kind="stable")
    ordered, wrong = known[order], ~right[order]
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
