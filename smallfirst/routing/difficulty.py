"""Predict how hard a request is for the small model, from rows whose outcome is known.

Hashed words, surface features and optionally a sentence encoder's vector go into one logistic regression with isotonic
calibration. Unless held-out rows are predicted better than by their mean outcome, that mean is returned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import special

from smallfirst.evaluation.calibration import MIN_ROWS, fit_isotonic
from smallfirst.files import write_atomically
from smallfirst.models.catalog import find_weights
from smallfirst.models.confidence import IsotonicCurve
from smallfirst.records import Record
from smallfirst.routing.confidence_head import (
    FOLDS,
    NUMBER,
    log_losses,
    logistic,
    means_and_scales,
    significantly_lower,
)

INVERSE_PENALTIES = (0.003, 0.03, 0.3, 3.0)
"""Values of C for the logistic regression, strongest penalty first; chosen by cross-validation."""
N_HASH_BUCKETS = 2**15
"""Buckets that words and word pairs are hashed to."""
N_COMPONENTS = 64
"""Components of the words' and of the encoder's space (truncated SVD); their weights are projected back."""
MIN_GAIN = 1e-3
"""Smallest gain in log loss, in nats, that counts."""
QUESTION_WORD = re.compile(r"\b(?:who|whom|whose|what|when|where|why|how|which)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")


class Embedder(Protocol):
    """A sentence encoder, such as `models.linear.sentence_encoder.SentenceEncoder`."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (texts, width), in order."""


class DifficultyParameters(Record):
    """Everything that is stored beside the weights."""

    rate: float
    """Mean outcome of the rows, in [0, 1]; returned for every request if nothing was learned."""
    known: bool
    """False if held-out rows were not predicted better than by the rate."""
    why: str
    """Result of the fit in one sentence."""
    n_rows: int
    """Number of rows."""
    base: str = ""
    """Name of the sentence encoder; empty without one."""
    bias: float = 0.0
    """Intercept."""
    steps: IsotonicCurve = IsotonicCurve()
    """From the linear score to the probability."""


class DifficultyWeights(NamedTuple):
    """Arrays of the fitted model."""

    rarity: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    meaning: np.ndarray


class DifficultyModel:
    """Estimate by request the probability that the small model does well enough."""

    def __init__(
        self, fitted: DifficultyParameters, weights: DifficultyWeights | None = None, embedder: Embedder | None = None
    ) -> None:
        self.fitted, self._weights, self._embedder = fitted, weights, embedder

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        helped: Sequence[bool | float],
        *,
        further: Sequence[Sequence[float]] | None = None,
        encoder: tuple[str, Embedder] | None = None,
    ) -> DifficultyModel:
        """Fit on requests and how well the small model did on each, in [0, 1] (True: well enough).

        `further` holds more numbers for each row, such as `confidence_head.draft_features`; `encoder` is the encoder
        with its name in `models.catalog`. Raise ValueError if the lengths differ or an outcome leaves [0, 1].
        """
        target = _outcomes(texts, helped, further)
        rate = float(target.mean()) if len(target) else 0.5
        if len(target) < MIN_ROWS or target.min() == target.max():
            why = f"nothing to learn from {len(target)} rows: {MIN_ROWS} are needed, not all alike"
            return cls(DifficultyParameters(rate=rate, known=False, why=why, n_rows=len(target)))
        hashed, counts = _hashed(texts), _counts(texts, further)
        rarity = 1 + np.log((1 + len(texts)) / (1 + np.bincount(hashed.indices, minlength=N_HASH_BUCKETS)))
        weighed, (centres, scales) = _weighed(hashed, rarity), means_and_scales(counts)
        meaning = encoder[1].embed(texts) if encoder else np.zeros((len(texts), 0))
        basis, axes = _directions(weighed), _directions(meaning)
        x = np.hstack([weighed @ basis, (counts - centres) / scales, meaning @ axes])
        known, why, inverse_penalty, held_out = _cross_validate(x, target)
        if not known:
            return cls(DifficultyParameters(rate=rate, known=False, why=why, n_rows=len(target)))
        model = _fit(x, target, inverse_penalty)
        of_words, of_counts, of_meaning = np.split(model.coef_[0], np.cumsum([basis.shape[1], len(scales)]))
        fitted = DifficultyParameters(
            rate=rate,
            known=True,
            why=why,
            n_rows=len(target),
            base=encoder[0] if encoder else "",
            bias=float(model.intercept_[0] - (of_counts * centres / scales).sum()),
            steps=fit_isotonic(held_out.tolist(), target.tolist()),
        )
        return cls(
            fitted,
            DifficultyWeights(rarity, basis @ of_words, of_counts / scales, axes @ of_meaning),
            encoder and encoder[1],
        )

    def score(self, texts: Sequence[str], *, further: Sequence[Sequence[float]] | None = None) -> np.ndarray:
        """Return a probability in [0, 1] for each text, in order. Raise ValueError unless `further` is as in `fit`."""
        if self._weights is None or not texts:
            return np.full(len(texts), self.fitted.rate)
        counts = _counts(texts, further)
        if counts.shape[1] != (n := len(self._weights.counts)):
            raise ValueError(
                f"fitted with {n - N_SURFACE_FEATURES} extra features, "
                f"called with {counts.shape[1] - N_SURFACE_FEATURES}"
            )
        logits = _weighed(_hashed(texts), self._weights.rarity) @ self._weights.words + self.fitted.bias
        logits = logits + counts @ self._weights.counts
        if self._embedder is not None:
            logits = logits + self._embedder.embed(texts) @ self._weights.meaning
        return np.array([self.fitted.steps.at(float(value)) for value in logits])

    def save(self, folder: Path) -> None:
        if self._weights is not None:
            from safetensors.numpy import save

            arrays = {name: np.ascontiguousarray(part) for name, part in self._weights._asdict().items()}
            write_atomically(folder / "difficulty.safetensors", save(arrays))
        self.fitted.save(folder / "difficulty.json")

    @classmethod
    def load(cls, folder: Path) -> DifficultyModel | None:
        if not (folder / "difficulty.json").exists():
            return None
        fitted = DifficultyParameters.load(folder / "difficulty.json")
        if not fitted.known:
            return cls(fitted)
        from safetensors.numpy import load_file

        weights = DifficultyWeights(**load_file(folder / "difficulty.safetensors"))
        if not fitted.base:
            return cls(fitted, weights)
        from smallfirst.models.linear.sentence_encoder import SentenceEncoder

        return cls(fitted, weights, SentenceEncoder(find_weights(fitted.base)))


def surface_features(text: str) -> tuple[float, ...]:
    """Return length, sentences, questions, numbers and punctuation of a text, as logs or shares."""
    words, numbers = text.split(), NUMBER.findall(text)
    largest = max((float(number.replace(",", "").split(".")[0]) for number in numbers), default=0.0)
    return (
        math.log1p(len(text)),
        math.log1p(len(words)),
        sum(map(len, words)) / max(1, len(words)),
        math.log1p(len(SENTENCE_END.findall(text))),
        math.log1p(text.count("\n")),
        float(text.count("?")),
        float(len(QUESTION_WORD.findall(text))),
        math.log1p(len(numbers)),
        math.log1p(len(set(numbers))),
        math.log1p(min(largest, 1e12)),
        sum(c.isdigit() for c in text) / max(1, len(text)),
        sum(not c.isalnum() and not c.isspace() for c in text) / max(1, len(text)),
    )


N_SURFACE_FEATURES = len(surface_features(""))


def _counts(texts: Sequence[str], further: Sequence[Sequence[float]] | None) -> np.ndarray:
    own = np.array([surface_features(text) for text in texts], dtype=np.float64)
    return own if further is None else np.hstack([own, np.asarray(further, dtype=np.float64)])


def _cross_validate(x: np.ndarray, target: np.ndarray) -> tuple[bool, str, float, np.ndarray]:
    """Return whether the least 5-fold log loss beats the mean's, why, its penalty and its held-out log-odds."""
    from sklearn.model_selection import KFold

    folds = list(KFold(FOLDS, shuffle=True, random_state=0).split(x))
    rates, tried = np.zeros(len(target)), []
    for train, test in folds:
        rates[test] = target[train].mean()
    for inverse_penalty in INVERSE_PENALTIES:
        scores = np.zeros(len(target))
        for train, test in folds:
            scores[test] = _fit(x[train], target[train], inverse_penalty).decision_function(x[test])
        tried.append((log_losses(special.expit(scores), target), inverse_penalty, scores))
    plain, (losses, inverse_penalty, scores) = log_losses(rates, target), min(tried, key=lambda one: one[0].mean())
    known = significantly_lower(losses, plain) and losses.mean() < plain.mean() - MIN_GAIN
    why = f"5-fold log loss on {len(target)} rows {losses.mean():.3f}, of their mean {plain.mean():.3f}"
    return known, f"{why}: {'learned' if known else 'nothing learned'}", inverse_penalty, scores


def _fit(x: np.ndarray, target: np.ndarray, inverse_penalty: float) -> Any:
    """Fit a logistic regression; an outcome of 0.7 counts as 0.7 of a good row and 0.3 of a bad one."""
    shares, outcome = np.concatenate([target, 1 - target]), np.repeat([1, 0], len(target))
    there = shares > 0
    return logistic(inverse_penalty).fit(np.vstack([x, x])[there], outcome[there], sample_weight=shares[there])


def _hashed(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        n_features=N_HASH_BUCKETS, ngram_range=(1, 2), binary=True, norm=None, alternate_sign=False
    )
    return hashing.transform(texts)


def _weighed(hashed: Any, rarity: np.ndarray) -> Any:
    from sklearn.preprocessing import normalize

    return normalize(hashed.multiply(rarity).tocsr())


def _directions(rows: Any) -> np.ndarray:
    """Return the first components (columns, n) of the rows by truncated SVD (Halko et al. 2011)."""
    from sklearn.utils.extmath import randomized_svd

    if not (n := min(N_COMPONENTS, *rows.shape)):
        return np.zeros((rows.shape[1], 0))
    return np.asarray(randomized_svd(rows, n, n_iter=2, transpose=False, random_state=0)[2].T)


def _outcomes(
    texts: Sequence[str], helped: Sequence[bool | float], further: Sequence[Sequence[float]] | None
) -> np.ndarray:
    target = np.asarray(helped, dtype=np.float64)
    n_further = len(texts if further is None else further)
    if not len(texts) == len(target) == n_further:
        raise ValueError(f"rows differ in number: {len(texts)} texts, {len(target)} outcomes, {n_further} further rows")
    if not all(0 <= outcome <= 1 for outcome in target):
        raise ValueError(f"outcomes must lie in [0, 1] (got {target.min():g} to {target.max():g})")
    return target
