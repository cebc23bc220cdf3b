"""The candidate and the traffic of `alarms.py`: a linear model on MiniLM's vectors, fitted on Banking77's training rows.

Its threshold, and which answers are audited more often, come from the validation rows; traffic is drawn from its answers to
the test rows. Rows are drawn with chances that give the error of accepted answers exactly, before and after a change:

- worse rows: requests are replaced by accepted ones that it gets wrong, so that errors stay where they were.
- label noise: any answer may be wrong, however confident, as when the rules of the task change.
- harder rows: requests of low confidence become more frequent, as when customers write about other things.
"""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.accuracy.run import data_folder
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.routing.certificate.summary import ThresholdPoint, threshold_curve
from smallfirst.routing.certificate.threshold_search import search_threshold

LIMIT, QUIET_ERROR = 0.05, 0.04
Kind = Literal["worse rows", "label noise", "harder rows"]
KINDS: tuple[Kind, ...] = ("worse rows", "label noise", "harder rows")


class Answers(NamedTuple):
    """What the candidate gave to rows, one entry a row."""

    confidence: np.ndarray
    label: np.ndarray
    wrong: np.ndarray


class Traffic(NamedTuple):
    """Which rows requests are, and what happens to their answers."""

    chance: np.ndarray
    """By row; sums to 1."""
    noise: float = 0.0
    """Chance that a right answer counts as wrong."""
    random_labels: float = 0.0
    """Share of the answers replaced by a random label."""


class Candidate:
    """The fitted candidate, its answers, and the threshold that validation rows certify."""

    def __init__(self) -> None:
        rows = {split: _rows(split) for split in ("train", "validation", "test")}
        self.labels = sorted({label for _, label in rows["train"]})
        index = {label: i for i, label in enumerate(self.labels)}
        gold = {split: np.array([index[label] for _, label in found]) for split, found in rows.items()}
        encoder = SentenceEncoder(find_weights(DEFAULT_ENCODER))
        vectors = {split: encoder.embed([text for text, _ in found]) for split, found in rows.items()}
        fitted = LogisticRegression(C=10, max_iter=300).fit(vectors["train"], gold["train"])
        self.gold = gold["test"]
        self.calibration, self.test = (
            _answers(fitted.predict_proba(vectors[split]), gold[split]) for split in ("validation", "test")
        )
        right = ~self.calibration.wrong
        found = search_threshold(self.calibration.confidence.tolist(), right.tolist(), Guarantee(max_error=LIMIT))
        self.threshold = found.threshold
        self.accepted = self.test.confidence >= self.threshold

    def curve(self) -> tuple[ThresholdPoint, ...]:
        """Return the curve that a certificate of this candidate would hold."""
        n = len(self.calibration.confidence)
        data = CascadeData(
            confidence=self.calibration.confidence[None],
            right=~self.calibration.wrong[None],
            cost_usd=np.zeros((2, n)),
            asked=np.zeros(n, dtype=bool),
            large_right=np.zeros(n, dtype=bool),
        )
        return threshold_curve(data, (self.threshold,), 0.95)

    def traffic(self, error: float, kind: Kind = "worse rows") -> Traffic:
        """Return traffic in which this share of accepted answers is wrong."""
        quiet = self._worse(QUIET_ERROR)
        if kind == "worse rows":
            return Traffic(self._worse(error))
        if kind == "label noise":
            return Traffic(quiet, noise=(error - QUIET_ERROR) / (1 - QUIET_ERROR))
        low, high = 0.0, 100.0
        for _ in range(60):
            tilt = (low + high) / 2
            chance = quiet * np.exp(-tilt * self.test.confidence * self.accepted)
            chance = np.where(self.accepted, chance * quiet[self.accepted].sum() / chance[self.accepted].sum(), quiet)
            low, high = (tilt, high) if self.error(Traffic(chance)) < error else (low, tilt)
        return Traffic(chance)

    def error(self, traffic: Traffic) -> float:
        """Return the share of accepted answers that are wrong."""
        chance = traffic.chance * self.accepted
        wrong = self.test.wrong + ~self.test.wrong * traffic.noise
        wrong = wrong * (1 - traffic.random_labels) + traffic.random_labels * (1 - 1 / len(self.labels))
        return float((chance * wrong).sum() / chance.sum())

    def _worse(self, error: float) -> np.ndarray:
        wrong = self.test.wrong[self.accepted].mean()
        scale = np.where(self.test.wrong, error / wrong, (1 - error) / (1 - wrong))
        chance = np.where(self.accepted, scale, 1.0)
        return chance / chance.sum()


def _rows(split: str) -> list[tuple[str, str]]:
    lines = (data_folder("banking77") / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["text"], row["label"]) for row in map(json.loads, lines)]


def _answers(shares: np.ndarray, gold: np.ndarray) -> Answers:
    return Answers(shares.max(axis=1), shares.argmax(axis=1), shares.argmax(axis=1) != gold)
