"""Linear classifiers on word counts or on a sentence encoder's vectors, for closed answers only."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smallfirst.base.files import write_atomically
from smallfirst.data.dataset import Dataset
from smallfirst.data.row_formats import to_json
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder, open_encoder
from smallfirst.models.label_model import LabelLogProbs, LabelModel, log_softmax
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.models.manifest import Manifest, int8_allowed, write_manifest
from smallfirst.models.protocol import Capability, Completion, Request, paid
from smallfirst.tasks.task import Task

INVERSE_REGULARIZATION = {"words": 30.0, "encoder": 10.0}
"""C of the logistic regression: fixed values that suit features of unit length, so nothing is tuned on the rows."""
ENCODER_FOLDER = "encoder"
"""Folder inside a model's folder that holds its own, fine-tuned encoder."""


class LinearClassifier:
    """Label probabilities by softmax over a linear map of features; log-odds of each label where there may be several.

    `several_labels` says which.
    """

    def __init__(
        self,
        features: Any,
        weights: np.ndarray,
        bias: np.ndarray,
        *,
        encoder: SentenceEncoder | None = None,
        several_labels: bool = False,
    ) -> None:
        """`features(texts)` returns a matrix (texts, features); weights (labels, features), bias (labels,)."""
        self.features, self.weights, self.bias, self.encoder = features, weights, bias, encoder
        self.several_labels = several_labels

    @classmethod
    def fit(
        cls,
        kind: Literal["words", "encoder"],
        data: Dataset,
        task: Task,
        *,
        encoder: SentenceEncoder | None = None,
    ) -> LinearClassifier:
        """Return a logistic regression fitted on the rows; kind `encoder` uses `encoder` or the default one."""
        texts = [example.text for example in data.examples]
        features: Any
        if kind == "words":
            features = TfidfFeatures.fit(texts)
            inputs = features.matrix(texts)
        else:
            features = (encoder or open_encoder(find_weights(DEFAULT_ENCODER))).embed
            inputs = features(texts)
        gold, n_labels = gold_labels([example.answer for example in data.examples], task), len(task.answer_labels)
        fitted = fit_logistic_regression(inputs, gold, n_labels, INVERSE_REGULARIZATION[kind])
        return cls(features, *fitted, several_labels=not task.closed)

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        if not texts:
            return []
        began = time.perf_counter()
        logits = np.asarray(self.features(list(texts)) @ self.weights.T) + self.bias  # (texts, labels)
        if not self.several_labels:
            logits = log_softmax(logits, 1.0)
        busy_s = (time.perf_counter() - began) / len(texts)
        return [LabelLogProbs(row, 0, busy_s) for row in logits]

    def save(self, folder: Path, manifest: Manifest) -> Manifest:
        digest = self.save_weights(folder)
        if isinstance(self.features, TfidfFeatures):
            self.features.save(folder)
        written = manifest.model_copy(update={"weights_fingerprint": digest})
        write_manifest(folder, written)
        return written

    def save_weights(self, folder: Path) -> str:
        from safetensors.numpy import save

        content = save({"weights": self.weights, "bias": self.bias})
        write_atomically(folder / "linear.safetensors", content)
        return hashlib.sha256(content).hexdigest()[:16]

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, *, int8: bool | None = None) -> LinearClassifier:
        """Load a folder; its encoder reads in int8 if `int8`, or by default if a check on selection rows allows it."""
        from safetensors.numpy import load_file

        tensors = load_file(folder / "linear.safetensors")
        weights, bias, several = tensors["weights"], tensors["bias"], not manifest.task.closed
        if manifest.kind == "words":
            return cls(TfidfFeatures.load(folder), weights, bias, several_labels=several)
        if int8 is None:
            int8 = int8_allowed(folder, manifest)
        if (own := folder / ENCODER_FOLDER).is_dir():
            encoder = SentenceEncoder.for_inference(own, int8=int8)
            encoder.max_tokens = min(encoder.max_tokens, manifest.max_tokens)
        else:
            encoder = open_encoder(find_weights(manifest.base), int8=int8)
        return cls(encoder.embed, weights, bias, encoder=encoder, several_labels=several)


def gold_labels(answers: Sequence[str], task: Task) -> np.ndarray:
    """Return the place of each answer's label (rows,), or 0 and 1 (rows, labels) where an answer lists several.

    Raise KeyError for a label that the task does not have.
    """
    index = {label: i for i, label in enumerate(task.answer_labels)}
    if task.closed:
        return np.array([index[answer] for answer in answers])
    gold = np.zeros((len(answers), len(index)), dtype=np.int64)
    for row, answer in zip(gold, answers, strict=True):
        row[[index[label] for label in json.loads(answer)]] = 1
    return gold


def fit_logistic_regression(
    features: Any, gold: np.ndarray, n_labels: int, inverse_regularization: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 weights (labels, features) and bias (labels,); labels without rows get an impossible bias.

    `gold` as `gold_labels` returns it; in two dimensions there is a regression for each label.
    """
    from sklearn.linear_model import LogisticRegression

    if gold.ndim == 2:
        both = [fit_logistic_regression(features, one, 2, inverse_regularization) for one in gold.T]
        weights, bias = (np.stack([fitted[part][1] - fitted[part][0] for fitted in both]) for part in (0, 1))
        return weights, bias
    if len(present := np.unique(gold)) == 1:
        bias = np.full(n_labels, -1e3, dtype=np.float32)
        bias[present] = 0
        return np.zeros((n_labels, features.shape[1]), dtype=np.float32), bias
    fitted = LogisticRegression(C=inverse_regularization, max_iter=300, tol=1e-3).fit(features, gold)
    weights = np.zeros((n_labels, fitted.coef_.shape[1]))
    bias = np.full(n_labels, -1e3)
    if fitted.coef_.shape[0] == 1:  # scikit-learn stores two classes as one signed row
        weights[fitted.classes_[1]], bias[fitted.classes_] = fitted.coef_[0], [0.0, fitted.intercept_[0]]
    else:
        weights[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
    return weights.astype(np.float32), bias.astype(np.float32)


class LabelSetModel(LabelModel):
    """A Scorer of log-odds as a Model: the labels above the manifest's threshold, in label order."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        return super().capabilities - {Capability.LOGPROBS, Capability.LABEL_PROBABILITIES}

    async def complete(self, request: Request) -> Completion:
        began = time.perf_counter()
        scored = await self._score(request.text)
        odds, threshold = np.asarray(scored.log_probabilities, dtype=np.float64), self.manifest.label_threshold
        return Completion(
            text=answer_labels(odds, self.manifest.task, threshold),
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            **paid(self._charge(scored)),
            confidence=self.manifest.calibration.confidence(decision_nats(odds, threshold).tolist()),
        )


def answer_labels(odds: np.ndarray, task: Task, threshold: float) -> str:
    """Return the canonical answer: the labels whose probability is at least `threshold`; `odds` (labels,) in nats."""
    chosen = odds >= _log_odds(threshold)
    labels = [label for label, is_chosen in zip(task.answer_labels, chosen, strict=True) if is_chosen]
    return str(task.parse(to_json(labels)))


def decision_nats(odds: np.ndarray, threshold: float) -> np.ndarray:
    """Return the log-probability of each label's decision (labels,), in nats, from its log-odds."""
    nats: np.ndarray = -np.logaddexp(0, np.where(odds >= _log_odds(threshold), -odds, odds))
    return nats


def _log_odds(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
