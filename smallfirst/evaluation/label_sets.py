"""Calibrate models that answer with labels: a temperature for one label; for several, which ones are answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.evaluation.calibration import accuracy_and_temperature, fit_calibration
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.linear.label_sets import answer_labels, decision_nats
from smallfirst.models.manifest import Manifest

THRESHOLDS = (0.5, 0.45, 0.55, 0.4, 0.6, 0.35, 0.65, 0.3, 0.7, 0.25, 0.2, 0.15)
"""Least probabilities of a label that are tried; of equally good ones the first is taken."""


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
