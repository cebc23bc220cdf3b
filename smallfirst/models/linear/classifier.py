"""Linear classifiers on word counts or on a sentence encoder's vectors, for closed answers only.

With a label for texts out of scope, `other`, an encoder's classifier answers it where a text is unlike the training
texts of every label: four signals of the encoder's vector and the labels' logits (`models.state_features`) and the
log-odds of `other` are fused by a logistic regression on selection rows, whose `other` rows nothing was fitted on.

An encoder reads in int8 only at equal answers: it reads selection rows in both precisions, and that is recorded. The
proof is that evaluation, gate, certificate and parity then measure the chosen arithmetic on other rows.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from scipy import special

from smallfirst.base.files import sha256, write_atomically
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import paired_difference, wilson
from smallfirst.data.dataset import Dataset
from smallfirst.data.row_formats import to_json
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.ctranslate2_engine import CTranslate2Encoder
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, REMEMBERED, SentenceEncoder, open_encoder
from smallfirst.models.label_model import LabelLogProbs, LabelModel
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.models.manifest import INT8_FILE, Int8Check, Manifest, int8_allowed, read_manifest, write_manifest
from smallfirst.models.protocol import Capability, Completion, Request, paid
from smallfirst.models.state_features import HiddenStateProfile, logit_features
from smallfirst.tasks.task import Task

INVERSE_REGULARIZATION = {"words": 30.0, "encoder": 10.0}
"""C of the logistic regression: fixed values that suit features of unit length, so nothing is tuned on the rows."""
SVM_INVERSE_REGULARIZATION = 1.0
"""C of the support vector machine, scikit-learn's default."""
SVM_SCALE = 6.0
"""Logits per unit of its margin: the median over samples of five sets, on which temperatures were 0.13 to 0.19."""
MAX_SPAN_ROWS = 2000
"""Rows up to which their span is found: 2 s of one core."""
Estimator = Literal["logistic_regression", "linear_svm"]
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
        estimator: Estimator = "logistic_regression",
    ) -> LinearClassifier:
        """Return a linear model fitted on the rows; kind `encoder` uses `encoder` or the default one.

        An SVM, one label against the rest, has margins in the place of logits, times SVM_SCALE.
        """
        texts = tuple(example.text for example in data.examples)
        features: Any
        if kind == "words":
            features, inputs = _words_of(texts)
        else:
            features = (encoder or open_encoder(find_weights(DEFAULT_ENCODER))).embed
            inputs = features(texts)
        gold, n_labels = gold_labels([example.answer for example in data.examples], task), len(task.answer_labels)
        fitted = fit_linear(inputs, gold, n_labels, INVERSE_REGULARIZATION[kind], estimator)
        return cls(features, *fitted, several_labels=not task.closed)

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        if not texts:
            return []
        began = time.perf_counter()
        logits = np.asarray(self.features(list(texts)) @ self.weights.T, np.float64) + self.bias  # (texts, labels)
        if not self.several_labels:
            logits = special.log_softmax(logits, axis=1)
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
            encoder = SentenceEncoder.for_inference(own, int8=int8, remembered=REMEMBERED)
            encoder.max_tokens = min(encoder.max_tokens, manifest.max_tokens)
        else:
            encoder = open_encoder(find_weights(manifest.base), int8=int8)
        return cls(encoder.embed, weights, bias, encoder=encoder, several_labels=several)


@functools.lru_cache(maxsize=1)
def _words_of(texts: tuple[str, ...]) -> tuple[TfidfFeatures, Any]:
    """Return the words of texts and their matrix, which each estimator is fitted on in turn."""
    features = TfidfFeatures.fit(texts)
    return features, features.matrix(texts)


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


def fit_linear(
    features: Any,
    gold: np.ndarray,
    n_labels: int,
    inverse_regularization: float,
    estimator: Estimator = "logistic_regression",
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 weights (labels, features) and bias (labels,); labels without rows get an impossible bias.

    `gold` as `gold_labels` returns it; in two dimensions there is a logistic regression for each label.
    `inverse_regularization` is that of the logistic regression.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC
    from threadpoolctl import threadpool_limits

    if gold.ndim == 2:
        both = [fit_linear(features, one, 2, inverse_regularization) for one in gold.T]
        weights, bias = (np.stack([fitted[part][1] - fitted[part][0] for fitted in both]) for part in (0, 1))
        return weights, bias
    if len(present := np.unique(gold)) == 1:
        bias = np.full(n_labels, -1e3, dtype=np.float32)
        bias[present] = 0
        return np.zeros((n_labels, features.shape[1]), dtype=np.float32), bias
    if estimator == "linear_svm":
        fitted = LinearSVC(C=SVM_INVERSE_REGULARIZATION, random_state=0).fit(features, gold)
    else:
        regression = LogisticRegression(C=inverse_regularization, max_iter=300, tol=1e-3)
        with threadpool_limits(1):  # several threads of BLAS wait spinning: beside other programs forty times slower
            inputs, basis = in_row_space(features)
            fitted = regression.fit(inputs, gold)
        if basis is not None:
            fitted.coef_ = fitted.coef_ @ basis @ features
    weights = np.zeros((n_labels, fitted.coef_.shape[1]))
    bias = np.full(n_labels, -1e3)
    if fitted.coef_.shape[0] == 1:  # scikit-learn stores two classes as one signed row
        weights[fitted.classes_[1]], bias[fitted.classes_] = fitted.coef_[0], [0.0, fitted.intercept_[0]]
    else:
        weights[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
    scale = SVM_SCALE if estimator == "linear_svm" else 1.0
    return (scale * weights).astype(np.float32), (scale * bias).astype(np.float32)


def in_row_space(features: Any) -> tuple[Any, np.ndarray | None]:
    """Return the rows (rows, rank) in an orthonormal basis of their span, and the basis as combinations of the rows.

    Weights of least square norm are such combinations, so the regression is the same with fewer of them. Dense rows,
    and more than MAX_SPAN_ROWS, are returned as they are, with None.
    """
    if isinstance(features, np.ndarray) or features.shape[0] > min(MAX_SPAN_ROWS, features.shape[1] // 2):
        return features, None
    squares, vectors = np.linalg.eigh((features @ features.T).toarray())
    kept = squares > 1e-10 * squares[-1]
    lengths, vectors = np.sqrt(squares[kept]), vectors[:, kept]
    return vectors * lengths, (vectors / lengths).T


class LabelSetModel(LabelModel):
    """A TextScorer of log-odds as a Model: the labels above the manifest's threshold, in label order."""

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


class Measured(NamedTuple):
    """What the classifier computes for some texts."""

    labels: np.ndarray
    """Log-probabilities of the labels in scope (texts, labels), -inf for `other`, in nats."""
    signals: np.ndarray
    """The signals (texts, 5); each grows with the distance from the training texts."""


class ScopedClassifier:
    """A TextScorer: `other` has the probability that the fused signals give it, the other labels share the rest."""

    def __init__(self, classifier: LinearClassifier, profile: HiddenStateProfile, parameters: ScopeParameters) -> None:
        self.classifier, self.profile, self.parameters = classifier, profile, parameters
        self.encoder = classifier.encoder

    @classmethod
    def fit(cls, classifier: LinearClassifier, train: Dataset, selection: Dataset, manifest: Manifest) -> Self | None:
        """Return the classifier with the signals fused; None with too few selection rows of either kind."""
        if (scoped := cls.unweighted(classifier, train, manifest)) is None:
            return None
        found = scoped.measure([example.text for example in selection.examples])
        nats = mix(found.labels, found.signals[:, -1], scoped.parameters.other)
        answers = [example.answer for example in selection.examples]
        chosen = choose_parameters(nats, found.signals, answers, manifest)
        return cls(classifier, scoped.profile, chosen) if chosen else None

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
        profile = HiddenStateProfile.fit(vectors, [labels.index(e.answer) for e in own])
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
        vectors, other = self.classifier.features(list(texts)), self.parameters.other
        logits = vectors @ self.classifier.weights.T + self.classifier.bias  # (texts, labels)
        own = np.delete(logits, other, axis=1)
        every = special.log_softmax(logits.astype(np.float64), axis=1)
        odds = every[:, other] - np.logaddexp.reduce(np.delete(every, other, axis=1), axis=1)
        return Measured(
            own_labels(every, other), np.column_stack([logit_features(own), self.profile.nonconformity(vectors), odds])
        )

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
    found: np.ndarray = np.insert(special.log_softmax(np.delete(logs, other, axis=1), axis=1), other, -np.inf, axis=1)
    return found


def mix(labels: np.ndarray, odds: np.ndarray, other: int) -> np.ndarray:
    """Return log-probabilities of all labels (texts, labels), `other` having the log-odds `odds` (texts,)."""
    logs: np.ndarray = labels - np.logaddexp(0, odds)[:, None]
    logs[:, other] = -np.logaddexp(0, -odds)
    return logs


def choose_parameters(
    nats: np.ndarray, signals: np.ndarray, answers: Sequence[str], manifest: Manifest
) -> ScopeParameters | None:
    """Return the weights of the signals (rows, 5) and the offset that suit rows with these right answers.

    `nats` (rows, labels) are log-probabilities. None with too few rows of either kind.
    """
    labels, other = manifest.task.closed, getattr(manifest.task, "other", None)
    is_other = np.array([answer == other for answer in answers])
    if is_other.sum() < MIN_OTHER or (~is_other).sum() < MIN_OWN:
        return None
    at = labels.index(str(other))
    weights = fit_weights(signals, is_other)
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


MIN_ROWS = 100
"""Fewer rows decide nothing: one row would be more than a point."""
MIN_AGREEMENT = 0.98
"""Share of rows with the same label."""
MAX_ACCURACY_LOSS = 0.01
"""Accuracy that may be lost on them."""


def check_int8(folder: Path, data: Dataset) -> Int8Check | None:
    """Check a folder on selection rows, before evaluation, and write the record; None if int8 is not possible."""
    manifest = read_manifest(folder)
    if manifest.kind != "encoder" or not len(data):
        return None
    exact = LinearClassifier.load(folder, manifest, int8=False)
    if exact.encoder is None or not isinstance(exact.encoder.engine, CTranslate2Encoder):
        return None
    int8 = LinearClassifier.load(folder, manifest, int8=True)
    texts = [example.text for example in data.examples]
    index = {label: i for i, label in enumerate(manifest.task.closed)}
    gold = [index.get(example.answer, -1) for example in data.examples]
    found = compare(exact.score(texts), int8.score(texts), gold, weights_fingerprint=manifest.weights_fingerprint)
    found.save(folder / INT8_FILE)
    return found


def compare(
    exact: Sequence[LabelLogProbs], int8: Sequence[LabelLogProbs], gold: Sequence[int], *, weights_fingerprint: str
) -> Int8Check:
    """Compare the answers to the same rows in both precisions; `gold` holds label indices.

    int8 is kept if, on MIN_ROWS or more, MIN_AGREEMENT of labels agree and at most MAX_ACCURACY_LOSS is lost.
    """
    before, after = (np.array([row.log_probabilities for row in scored]).argmax(axis=1) for scored in (exact, int8))
    agreement = wilson(int((before == after).sum()), len(before))
    difference = paired_difference((after == np.asarray(gold)).tolist(), (before == np.asarray(gold)).tolist())
    kept, why = False, f"the same label on {agreement}, accuracy changes by {difference}"
    if agreement.n < MIN_ROWS:
        why = f"{agreement.n} rows are too few to decide on; at least {MIN_ROWS} are needed"
    elif agreement.value < MIN_AGREEMENT:
        why = f"the same label on {agreement}, but at least {MIN_AGREEMENT:.0%} is required"
    elif difference.value < -MAX_ACCURACY_LOSS:
        why = f"accuracy changes by {difference}, but no more than {MAX_ACCURACY_LOSS:.0%} may be lost"
    else:
        kept = True
    return Int8Check(
        weights_fingerprint=weights_fingerprint, agreement=agreement, difference=difference, kept=kept, why=why
    )
