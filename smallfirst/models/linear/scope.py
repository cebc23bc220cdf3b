"""A classifier on a sentence encoder that answers `other` where a text is unlike the training texts of every label.

Four signals of the encoder's vector and the labels' logits (`models.state_features`) and the log-odds of the label
`other` itself are fused by a logistic regression on selection rows, whose `other` rows nothing was fitted on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from smallfirst.base.files import sha256, write_atomically
from smallfirst.base.records import Record
from smallfirst.data.dataset import Dataset
from smallfirst.models.label_model import LabelLogProbs, log_softmax
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.models.state_features import HiddenStateProfile, HiddenStates

SCOPE_FILE, PROFILE_FILE = "scope.json", "scope_profile.safetensors"
MIN_OTHER, MIN_OWN = 10, 50
"""Selection rows of `other`, and of the other labels, below which the label `other` decides alone."""
MAX_LOSS = 0.005
"""Share of the selection rows in scope whose right answer may become `other`."""
MAX_ROWS = 8000
"""Training rows whose vectors are kept; of more, evenly spaced ones."""


class ScopeParameters(Record):
    """From the signals of a text to the log-odds that no label fits."""

    other: int
    """Place of `other` among the labels."""
    weights: tuple[float, ...]
    """Of the four signals and of the log-odds of the label `other`; none is negative."""
    offset: float
    """Added to their weighted sum."""


class Measured(NamedTuple):
    """What the classifier computes for some texts."""

    labels: np.ndarray
    """Log-probabilities of the labels in scope (texts, labels), -inf for `other`, in nats."""
    signals: np.ndarray
    """The signals (texts, 5); each grows with the distance from the training texts."""


class ScopedClassifier:
    """A Scorer: `other` has the probability that the fused signals give it, the other labels share the rest."""

    def __init__(self, classifier: LinearClassifier, profile: HiddenStateProfile, parameters: ScopeParameters) -> None:
        self.classifier, self.profile, self.parameters = classifier, profile, parameters

    @classmethod
    def fit(cls, classifier: LinearClassifier, train: Dataset, selection: Dataset, manifest: Manifest) -> Self | None:
        """Return the classifier with the signals fused; None with too few selection rows of either kind."""
        scoped, answers = (
            cls.unweighted(classifier, train, manifest),
            [example.answer for example in selection.examples],
        )
        if scoped is None or not has_enough_rows(answers, manifest):
            return None
        found = scoped.measure([example.text for example in selection.examples])
        nats = mix(found.labels, found.signals[:, -1], scoped.parameters.other)
        scoped.parameters = choose_parameters(nats, found.signals, answers, manifest) or scoped.parameters
        return scoped

    @classmethod
    def unweighted(cls, classifier: LinearClassifier, train: Dataset, manifest: Manifest) -> Self | None:
        """Return the classifier with the profile of `train`, its signals not fused yet.

        None where it reads no encoder, or the task has no label for texts out of scope.
        """
        labels, other = manifest.task.closed, getattr(manifest.task, "other", None)
        own = [example for example in train.examples if example.answer != other]
        if manifest.kind != "encoder" or other is None or not labels or not own:
            return None
        own = [own[i] for i in np.linspace(0, len(own) - 1, min(len(own), MAX_ROWS)).astype(int)]
        vectors = classifier.features([example.text for example in own])
        none = np.zeros((len(own), 0), dtype=np.float32)
        profile = HiddenStateProfile.fit(HiddenStates(vectors, none), [labels.index(e.answer) for e in own])
        return cls(classifier, profile, ScopeParameters(other=labels.index(other), weights=(1.0,) * 5, offset=0.0))

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        if not texts:
            return []
        began, own = time.perf_counter(), self.parameters
        found = self.measure(texts)
        logs = mix(found.labels, found.signals @ np.asarray(own.weights) + own.offset, own.other)
        busy_s = (time.perf_counter() - began) / len(texts)
        return [LabelLogProbs(row, 0, busy_s) for row in logs]

    def measure(self, texts: Sequence[str]) -> Measured:
        """Return label probabilities and signals from one pass of the encoder."""
        vectors, other = self.classifier.features(list(texts)), self.parameters.other
        logits = vectors @ self.classifier.weights.T + self.classifier.bias  # (texts, labels)
        own = np.delete(logits, other, axis=1)
        signals = self.profile.nonconformity(HiddenStates(vectors, own))
        every = log_softmax(logits, 1.0)
        odds = every[:, other] - np.logaddexp.reduce(np.delete(every, other, axis=1), axis=1)
        return Measured(own_labels(every, other), np.column_stack([signals, odds]))

    def save(self, folder: Path, manifest: Manifest) -> Manifest:
        """Write what was fitted beside the classifier that `folder` holds, and the manifest."""
        self.profile.save(folder / PROFILE_FILE)
        write_atomically(folder / SCOPE_FILE, self.parameters.model_dump_json().encode())
        digest = f"{manifest.weights_fingerprint.partition('-')[0]}-{sha256(folder / PROFILE_FILE)[:8]}"
        written = manifest.model_copy(update={"weights_fingerprint": digest})
        write_manifest(folder, written)
        return written


def load_classifier(folder: Path, manifest: Manifest) -> LinearClassifier | ScopedClassifier:
    """Return the linear model in a folder, with the signals that tell what is out of scope where it has them."""
    classifier = LinearClassifier.load(folder, manifest)
    if not (folder / SCOPE_FILE).is_file():
        return classifier
    profile = HiddenStateProfile.load(folder / PROFILE_FILE)
    return ScopedClassifier(classifier, profile, ScopeParameters.load(folder / SCOPE_FILE))


def own_labels(logs: np.ndarray, other: int) -> np.ndarray:
    """Return the log-probabilities (texts, labels) of the labels in scope alone, -inf for `other`, in nats."""
    found: np.ndarray = np.insert(log_softmax(np.delete(logs, other, axis=1), 1.0), other, -np.inf, axis=1)
    return found


def mix(labels: np.ndarray, odds: np.ndarray, other: int) -> np.ndarray:
    """Return log-probabilities of all labels (texts, labels), `other` having the log-odds `odds` (texts,)."""
    logs: np.ndarray = labels - np.logaddexp(0, odds)[:, None]
    logs[:, other] = -np.logaddexp(0, -odds)
    return logs


def has_enough_rows(answers: Sequence[str], manifest: Manifest) -> bool:
    """Return True if these rows are enough of either kind to fuse the signals by."""
    n_other = sum(answer == getattr(manifest.task, "other", None) for answer in answers)
    return n_other >= MIN_OTHER and len(answers) - n_other >= MIN_OWN


def choose_parameters(
    nats: np.ndarray, signals: np.ndarray, answers: Sequence[str], manifest: Manifest
) -> ScopeParameters | None:
    """Return the weights of the signals (rows, 5) and the offset that suit rows with these right answers.

    `nats` (rows, labels) are log-probabilities. None with too few rows of either kind.
    """
    if not has_enough_rows(answers, manifest):
        return None
    labels, other = manifest.task.closed, getattr(manifest.task, "other", None)
    at = labels.index(str(other))
    weights = fit_weights(signals, np.array([answer == other for answer in answers]))
    logs = mix(own_labels(nats, at), signals @ weights, at)
    offset = choose_offset(logs, np.array([labels.index(answer) for answer in answers]), at)
    return ScopeParameters(other=at, weights=tuple(weights.tolist()), offset=offset)


def fit_weights(signals: np.ndarray, is_other: np.ndarray) -> np.ndarray:
    """Return a weight of each signal (rows, signals), at least 0: a logistic regression, both kinds counting alike."""
    from sklearn.linear_model import LogisticRegression

    centres, spread = signals[~is_other].mean(axis=0), signals[~is_other].std(axis=0)
    scales = np.where(spread > 1e-9, spread, 1.0)
    fitted = LogisticRegression(class_weight="balanced").fit((signals - centres) / scales, is_other)
    weights: np.ndarray = np.maximum(fitted.coef_[0], 0)
    return (weights if weights.any() else np.ones(len(scales))) / scales


def choose_offset(log_probabilities: np.ndarray, gold: np.ndarray, other: int, *, max_loss: float = MAX_LOSS) -> float:
    """Return what to add to the log-odds of `other` (rows, labels in nats) to answer it as often as is right.

    Of the offsets that turn at most a share `max_loss` of the rows in scope from right to wrong, the one with the
    highest mean of accuracy in scope and recall of `other`.
    """
    own = np.delete(log_probabilities, other, axis=1)
    best = own.argmax(axis=1)
    margin = own.max(axis=1) - log_probabilities[:, other]  # `other` is answered where the offset is larger
    best += best >= other
    kept = np.sort(margin[(gold != other) & (best == gold)])
    missed = np.sort(margin[gold == other])
    n_own = max(1, int((gold != other).sum()))
    limits = kept[: int(max_loss * n_own) + 1] if len(kept) else np.array([0.0])
    lost, caught = np.searchsorted(kept, limits) / n_own, np.searchsorted(missed, limits) / max(1, len(missed))
    return float(limits[np.argmax(caught - lost)])
