"""Predict by request which models answer rightly and what a larger one would add, from rows whose outcomes are known.

Hashed words, surface features and optionally a sentence encoder's vector go into one calibrated logistic regression a
model. Where held-out rows are not predicted better than by their mean outcome, that mean is returned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
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
"""Values of C for the logistic regressions, strongest penalty first; chosen by cross-validation."""
N_HASH_BUCKETS = 2**15
"""Buckets that words and word pairs are hashed to."""
N_COMPONENTS = 64
"""Components of the words' and of the encoder's space (truncated SVD); their weights are projected back."""
MIN_GAIN = 1e-3
"""Smallest gain in log loss, in nats, that counts."""
SMALL, LARGE = "small", "large"
"""The models that the gain lies between."""
QUESTION_WORD = re.compile(r"\b(?:who|whom|whose|what|when|where|why|how|which)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")


class Embedder(Protocol):
    """A sentence encoder, such as `models.linear.sentence_encoder.SentenceEncoder`."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (texts, width), in order."""


class ModelOutcome(Record):
    """What was learned of one model."""

    rate: float
    """Mean outcome of the rows, in [0, 1]; returned for every request if nothing was learned."""
    known: bool = False
    """False if held-out rows were not predicted better than by the rate."""
    why: str
    """Result of the fit in one sentence."""
    n_rows: int
    """Rows with an outcome."""
    bias: float = 0.0
    """Intercept."""
    steps: IsotonicCurve = IsotonicCurve()
    """From the linear score to the probability."""


class GainParameters(Record):
    """Everything that is stored beside the weights."""

    models: dict[str, ModelOutcome]
    """By name of the model; the weights have their columns in this order."""
    base: str = ""
    """Name of the sentence encoder; empty without one."""
    quantiles: tuple[float, ...] = ()
    """Held-out gains at 0, 1, … 100 % of the rows, rising; empty if the gain is the same for all."""

    @property
    def why(self) -> str:
        """The result of the fit, a sentence a model."""
        return "; ".join(f"{name}: {one.why}" for name, one in self.models.items())


class GainWeights(NamedTuple):
    """Arrays of the fitted models; all but `rarity` have one column for each."""

    rarity: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    meaning: np.ndarray


class GainModel:
    """Estimate by request the probability that each model is right, and the gain of the large one."""

    def __init__(
        self, fitted: GainParameters, weights: GainWeights | None = None, embedder: Embedder | None = None
    ) -> None:
        self.fitted, self._weights, self._embedder = fitted, weights, embedder

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        outcomes: Mapping[str, Sequence[bool | float]],
        *,
        further: Sequence[Sequence[float]] | None = None,
        encoder: tuple[str, Embedder] | None = None,
    ) -> GainModel:
        """Fit on requests and how well each model did on them, in [0, 1] (True: right; NaN: not asked).

        `outcomes` are by model, `small` and `large` among them where a gain is wanted; without `large` it is taken to
        be always right. `further` holds more numbers for each row, such as `confidence_head.draft_features`; `encoder`
        is the encoder with its name in `models.catalog`. Raise ValueError if the lengths differ or an outcome leaves
        [0, 1].
        """
        targets = {name: _checked(texts, values, further) for name, values in outcomes.items()}
        if not texts:
            return cls(GainParameters(models={name: _learn(np.zeros((0, 0)), np.zeros(0)).outcome for name in targets}))
        hashed, counts = _hashed(texts), _counts(texts, further)
        rarity = 1 + np.log((1 + len(texts)) / (1 + np.bincount(hashed.indices, minlength=N_HASH_BUCKETS)))
        weighed, (centres, scales) = _weighed(hashed, rarity), means_and_scales(counts)
        meaning = encoder[1].embed(texts) if encoder else np.zeros((len(texts), 0))
        basis, axes = _directions(weighed), _directions(meaning)
        x = np.hstack([weighed @ basis, (counts - centres) / scales, meaning @ axes])
        found = {name: _learn(x, target) for name, target in targets.items()}
        weights = np.stack([one.weights for one in found.values()], axis=1)
        of_words, of_counts, of_meaning = np.split(weights, np.cumsum([basis.shape[1], len(scales)]))
        of_counts = of_counts / scales[:, None]
        biases = [one.outcome.bias - centres @ column for one, column in zip(found.values(), of_counts.T, strict=True)]
        models = {
            name: one.outcome.model_copy(update={"bias": float(bias)})
            for (name, one), bias in zip(found.items(), biases, strict=True)
        }
        held_out = _gain({name: one.held_out for name, one in found.items()}) if SMALL in found else np.zeros(0)
        fitted = GainParameters(models=models, base=encoder[0] if encoder else "", quantiles=_quantiles(held_out))
        if not any(one.known for one in models.values()):
            return cls(fitted.model_copy(update={"base": ""}))
        parts = GainWeights(rarity, basis @ of_words, of_counts, axes @ of_meaning)
        return cls(fitted, parts, encoder and encoder[1])

    def probabilities(
        self, texts: Sequence[str], *, further: Sequence[Sequence[float]] | None = None
    ) -> dict[str, np.ndarray]:
        """Return by model a probability in [0, 1] for each text. Raise ValueError unless `further` is as in `fit`."""
        models = self.fitted.models
        if self._weights is None or not texts:
            return {name: np.full(len(texts), one.rate) for name, one in models.items()}
        counts = _counts(texts, further)
        if counts.shape[1] != (n := len(self._weights.counts)):
            raise ValueError(
                f"fitted with {n - N_SURFACE_FEATURES} extra features, "
                f"called with {counts.shape[1] - N_SURFACE_FEATURES}"
            )
        logits = _weighed(_hashed(texts), self._weights.rarity) @ self._weights.words + counts @ self._weights.counts
        if self._embedder is not None:
            logits = logits + self._embedder.embed(texts) @ self._weights.meaning
        return {
            name: one.steps.at_each(column + one.bias) if one.known else np.full(len(texts), one.rate)
            for (name, one), column in zip(models.items(), logits.T, strict=True)
        }

    def score(self, texts: Sequence[str], *, further: Sequence[Sequence[float]] | None = None) -> np.ndarray:
        """Return for each text the gain in [-1, 1]: how much likelier the large model is right than the small one."""
        return _gain(self.probabilities(texts, further=further))

    def threshold(self, share: float) -> float:
        """Return the gain that a share in [0, 1] of the held-out rows exceeded; 1 if the gain is the same for all."""
        quantiles = self.fitted.quantiles
        return float(np.interp(1 - share, np.linspace(0, 1, len(quantiles)), quantiles)) if quantiles else 1.0

    def save(self, folder: Path) -> None:
        if self._weights is not None:
            from safetensors.numpy import save

            arrays = {name: np.ascontiguousarray(part) for name, part in self._weights._asdict().items()}
            write_atomically(folder / "gain.safetensors", save(arrays))
        self.fitted.save(folder / "gain.json")

    @classmethod
    def load(cls, folder: Path) -> GainModel | None:
        """Return the model saved in a folder, also a difficulty of an earlier version; None without one."""
        if (folder / "difficulty.json").exists():
            old = _OldDifficulty.load(folder / "difficulty.json")
            values = old.model_dump(exclude={"base"})
            fitted = GainParameters(models={SMALL: ModelOutcome.model_validate(values)}, base=old.base)
        elif (folder / "gain.json").exists():
            fitted = GainParameters.load(folder / "gain.json")
        else:
            return None
        if not any(one.known for one in fitted.models.values()):
            return cls(fitted)
        from safetensors.numpy import load_file

        name = "gain" if (folder / "gain.json").exists() else "difficulty"
        arrays = load_file(folder / f"{name}.safetensors")
        n = len(fitted.models)
        columns = {key: part if key == "rarity" else part.reshape(len(part), n) for key, part in arrays.items()}
        weights = GainWeights(**columns)
        if not fitted.base:
            return cls(fitted, weights)
        from smallfirst.models.linear.sentence_encoder import SentenceEncoder

        return cls(fitted, weights, SentenceEncoder(find_weights(fitted.base)))


class _OldDifficulty(ModelOutcome):
    """File of the difficulty of version 0.1.0's first months: the small model's outcome alone."""

    base: str = ""


class _Learned(NamedTuple):
    """One model's outcome with its weights, and its held-out probabilities by row."""

    outcome: ModelOutcome
    weights: np.ndarray
    held_out: np.ndarray


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


def _gain(probabilities: Mapping[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = probabilities.get(LARGE, np.ones(1)) - probabilities[SMALL]
    return found


def _quantiles(gains: np.ndarray) -> tuple[float, ...]:
    if not len(gains) or gains.max() - gains.min() < 1e-9:
        return ()
    return tuple(np.quantile(gains, np.linspace(0, 1, 101)).tolist())


def _counts(texts: Sequence[str], further: Sequence[Sequence[float]] | None) -> np.ndarray:
    own = np.array([surface_features(text) for text in texts], dtype=np.float64).reshape(-1, N_SURFACE_FEATURES)
    return own if further is None else np.hstack([own, np.asarray(further, dtype=np.float64)])


def _learn(x: np.ndarray, outcomes: np.ndarray) -> _Learned:
    """Fit one model's outcome on the rows where it is known."""
    there = ~np.isnan(outcomes)
    target, n = outcomes[there], int(there.sum())
    rate = float(target.mean()) if n else 0.5
    nothing, held_out = np.zeros(x.shape[1]), np.full(len(x), rate)
    if n < MIN_ROWS or target.min() == target.max():
        why = f"nothing to learn from {n} rows: {MIN_ROWS} are needed, not all alike"
        return _Learned(ModelOutcome(rate=rate, why=why, n_rows=n), nothing, held_out)
    known, why, inverse_penalty, scores = _cross_validate(x[there], target)
    if not known:
        return _Learned(ModelOutcome(rate=rate, why=why, n_rows=n), nothing, held_out)
    model = _fit(x[there], target, inverse_penalty)
    steps, bias = fit_isotonic(scores.tolist(), target.tolist()), float(model.intercept_[0])
    held_out[there] = steps.at_each(scores)
    return _Learned(
        ModelOutcome(rate=rate, known=True, why=why, n_rows=n, bias=bias, steps=steps), model.coef_[0], held_out
    )


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


def _checked(
    texts: Sequence[str], values: Sequence[bool | float], further: Sequence[Sequence[float]] | None
) -> np.ndarray:
    target = np.asarray(values, dtype=np.float64)
    n_further = len(texts if further is None else further)
    if not len(texts) == len(target) == n_further:
        raise ValueError(f"rows differ in number: {len(texts)} texts, {len(target)} outcomes, {n_further} further rows")
    if not all(0 <= outcome <= 1 for outcome in target[~np.isnan(target)]):
        raise ValueError(f"outcomes must lie in [0, 1] (got {np.nanmin(target):g} to {np.nanmax(target):g})")
    return target
