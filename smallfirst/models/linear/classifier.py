"""The low rungs of the ladder: a linear model on words, or on a frozen sentence encoder. Closed answers only.

They train in seconds, cost next to nothing to serve, and on many narrow tasks they are enough. They belong in every
comparison, and the verdict names them when they pass.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.files import write_atomically
from smallfirst.models.catalog import find_weights
from smallfirst.models.label_model import LabelLogProbs, TextEmbedding
from smallfirst.models.linear.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder
from smallfirst.models.linear.tfidf import TfidfVectorizer, Vocabulary
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.tasks.task import Task

INVERSE_REGULARIZATION = {"words": 30.0, "encoder": 10.0}
"""C of the logistic regression: fixed values that suit unit-length features, so nothing is tuned on anybody's rows."""
ENCODER_FOLDER = "encoder"
"""Folder inside a model's folder that holds its own, fine-tuned encoder."""


class TfidfFeatures:
    """TF-IDF over words (1-2) and characters inside words (2-5), side by side."""

    def __init__(self, vectorisers: Sequence[Any] = (), *, tables: Sequence[Vocabulary] = ()) -> None:
        """Of fitted vectorisers, or of the tables saved of them; the latter need no scikit-learn to answer."""
        self._vectorisers, self._tables = vectorisers, tables
        self._ngrams = TfidfVectorizer(*tables) if tables else None

    @property
    def vectorisers(self) -> Sequence[Any]:
        """scikit-learn's own, made of the tables where they are asked for."""
        if not self._vectorisers:
            made = [_vectoriser("word", (1, 2)), _vectoriser("char_wb", (2, 5))]
            for vectoriser, table in zip(made, self._tables, strict=True):
                vectoriser.vocabulary_, vectoriser.idf_ = table.column, table.idf
            self._vectorisers = made
        return self._vectorisers

    @classmethod
    def fit(cls, texts: Sequence[str]) -> TfidfFeatures:
        """Vocabulary and document frequencies from training texts."""
        made = cls([_vectoriser("word", (1, 2)), _vectoriser("char_wb", (2, 5))])
        for vectoriser in made.vectorisers:
            vectoriser.fit(texts)
        return made

    def __call__(self, texts: Sequence[str]) -> Any:
        """Sparse matrix (texts, features)."""
        if self._ngrams is not None:
            return self._ngrams(texts)
        from scipy import sparse

        return sparse.hstack([v.transform(texts) for v in self.vectorisers], format="csr")

    def as_saved(self) -> TfidfFeatures:
        """The same of its tables alone: what a loaded model has, to the last bit."""
        if self._tables:
            return self
        return TfidfFeatures(
            tables=[Vocabulary({w: int(i) for w, i in v.vocabulary_.items()}, v.idf_) for v in self._vectorisers]
        )

    def save(self, folder: Path) -> None:
        """Write vocabulary and weights as JSON (no pickle)."""
        parts = [{"vocabulary": table.column, "idf": table.idf.tolist()} for table in self.as_saved()._tables]
        write_atomically(folder / "words.json", json.dumps(parts, ensure_ascii=False).encode())

    @classmethod
    def load(cls, folder: Path) -> TfidfFeatures:
        """Read back what `save` wrote."""
        parts = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return cls(tables=[Vocabulary(part["vocabulary"], np.asarray(part["idf"])) for part in parts])


class LinearClassifier:
    """Label probabilities by softmax over a linear map of features."""

    def __init__(self, features: Any, weights: np.ndarray, bias: np.ndarray) -> None:
        self.features, self.weights, self.bias = features, weights, bias
        if isinstance(encoder := getattr(features, "__self__", None), SentenceEncoder):
            self.embed = partial(_embedded, encoder)  # only an encoder has vectors to give

    @classmethod
    def fit(
        cls, kind: Literal["words", "encoder"], data: Dataset, task: Task, *, encoder: SentenceEncoder | None = None
    ) -> LinearClassifier:
        """Multinomial logistic regression on the rows; `encoder` is needed for kind `encoder`."""
        texts = [example.text for example in data.examples]
        index = {label: i for i, label in enumerate(task.closed)}
        gold = np.array([index[example.answer] for example in data.examples])
        features = TfidfFeatures.fit(texts) if kind == "words" else _embedder(encoder)
        learnt = fit_logistic_regression(features(texts), gold, len(task.closed), INVERSE_REGULARIZATION[kind])
        return cls(features.as_saved() if isinstance(features, TfidfFeatures) else features, *learnt)

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        """Label probabilities of each text, in order."""
        if not texts:
            return []
        began = time.perf_counter()
        logits = np.asarray(self.features(list(texts)) @ self.weights.T) + self.bias  # (texts, labels)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        busy_s = (time.perf_counter() - began) / max(1, len(texts))
        return [LabelLogProbs(row, 0, busy_s) for row in log_probabilities]

    def save(self, folder: Path, manifest: Manifest) -> Manifest:
        """Write weights, features and, last, the manifest; returns the manifest as written."""
        digest = self.save_weights(folder)
        if isinstance(self.features, TfidfFeatures):
            self.features.save(folder)
        written = manifest.model_copy(update={"weights_fingerprint": digest})
        write_manifest(folder, written)
        return written

    def save_weights(self, folder: Path) -> str:
        """The fingerprint of the linear map, now in `folder` as safetensors."""
        from safetensors.numpy import save

        content = save({"weights": self.weights, "bias": self.bias})
        write_atomically(folder / "linear.safetensors", content)
        return hashlib.sha256(content).hexdigest()[:16]

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> LinearClassifier:
        """Read back what `save` wrote; the encoder is the folder's own if it was fine-tuned, else found by name."""
        from safetensors.numpy import load_file

        tensors = load_file(folder / "linear.safetensors")
        features: Any
        if manifest.kind == "words":
            features = TfidfFeatures.load(folder)
        elif (own := folder / ENCODER_FOLDER).is_dir():
            encoder = SentenceEncoder(own)
            encoder.max_tokens = min(encoder.max_tokens, manifest.max_tokens)
            features = encoder.embed
        else:
            features = SentenceEncoder(find_weights(manifest.base)).embed
        return cls(features, tensors["weights"], tensors["bias"])


def fit_logistic_regression(
    features: Any, gold: np.ndarray, n_labels: int, inverse_penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (labels, features) and bias (labels) of a multinomial logistic regression, float32.

    A label without training rows keeps weight 0 and a bias that no text can overcome.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=inverse_penalty, max_iter=300, tol=1e-3).fit(features, gold)
    weights = np.zeros((n_labels, fitted.coef_.shape[1]))
    bias = np.full(n_labels, -1e3)
    if fitted.coef_.shape[0] == 1:  # scikit-learn stores two classes as one signed row
        weights[fitted.classes_[1]], bias[fitted.classes_] = fitted.coef_[0], [0.0, fitted.intercept_[0]]
    else:
        weights[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
    return weights.astype(np.float32), bias.astype(np.float32)


def _embedded(encoder: SentenceEncoder, texts: Sequence[str]) -> list[TextEmbedding]:
    """The encoder's vector of each text, in order."""
    began = time.perf_counter()
    vectors = encoder.embed(texts).tolist()
    busy_s = (time.perf_counter() - began) / max(1, len(texts))
    return [
        TextEmbedding(vector, len(encoder.tokens(text)), busy_s) for vector, text in zip(vectors, texts, strict=True)
    ]


def _embedder(encoder: SentenceEncoder | None) -> Any:
    return (encoder or SentenceEncoder(find_weights(DEFAULT_ENCODER))).embed


def _vectoriser(analyzer: str, ngrams: tuple[int, int]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True, lowercase=True)
