"""Predict by request how much likelier a larger model is right than a smaller one, from rows whose outcomes are known.

Hashed words and counts of the text go into one calibrated logistic regression a model; the gain is the difference of
two. Where held-out rows are not predicted better than by their mean outcome, that mean is returned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record
from smallfirst.measuring.calibration import MIN_ROWS, fit_isotonic
from smallfirst.models.confidence import IsotonicCurve
from smallfirst.routing.acceptance import MIN_PROBABILITY, means_and_scales

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")
N_HASH_BUCKETS = 2**15
"""Buckets that words and word pairs are hashed to."""
N_COMPONENTS = 64
"""Components of the words' space (truncated SVD); their weights are projected back."""
INVERSE_PENALTIES = (0.003, 0.03, 0.3, 3.0)
"""Values of C, strongest penalty first; chosen by cross-validation."""
MIN_GAIN = 1e-3
"""Smallest gain in log loss, in nats, that counts."""
FOLDS = 5
SMALL, LARGE = "small", "large"
"""The models that the gain lies between."""


def text_features(texts: Sequence[str]) -> np.ndarray:
    """Return counts of each text (texts, features): length, words, sentences, lines, questions, numbers, signs."""
    counts = [
        (
            math.log1p(len(text)),
            math.log1p(len(text.split())),
            math.log1p(len(SENTENCE_END.findall(text))),
            math.log1p(text.count("\n")),
            float(text.count("?")),
            math.log1p(len(NUMBER.findall(text))),
            sum(c.isdigit() for c in text) / max(1, len(text)),
            sum(not c.isalnum() and not c.isspace() for c in text) / max(1, len(text)),
        )
        for text in texts
    ]
    return np.array(counts, dtype=np.float64)


def hashed_words(texts: Sequence[str]) -> Any:
    """Return which words and word pairs occur, as a sparse matrix (texts, N_HASH_BUCKETS) of 0 and 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        n_features=N_HASH_BUCKETS, ngram_range=(1, 2), binary=True, norm=None, alternate_sign=False
    )
    return hashing.transform(texts)


def _weighed(hashed: Any, rarity: np.ndarray) -> Any:
    """Return the rows weighed by `rarity` (N_HASH_BUCKETS,), each of unit length."""
    from sklearn.preprocessing import normalize

    return normalize(hashed.multiply(rarity).tocsr())


class ModelOutcome(Record):
    """What was learned of one model."""

    rate: float
    """Mean outcome of the rows, in [0, 1]; returned for every request if nothing was learned."""
    known: bool = False
    """False if held-out rows were not predicted better than by the rate."""
    why: str
    """Result of the fit in one sentence."""
    n_rows: int
    bias: float = 0.0
    """Intercept."""
    steps: IsotonicCurve = IsotonicCurve()
    """From the linear score to the probability."""


class GainParameters(Record):
    """Everything that is stored beside the weights."""

    models: dict[str, ModelOutcome]
    """By name of the model; the weights have their columns in this order."""
    quantiles: tuple[float, ...] = ()
    """Held-out gains at 0, 1, … 100 % of the rows, rising; empty if the gain is the same for all."""

    @property
    def why(self) -> str:
        """The result of the fit, a sentence a model."""
        return "; ".join(f"{name}: {one.why}" for name, one in self.models.items())


class GainWeights(NamedTuple):
    """Arrays of the fitted models; all but `rarity` have a column for each."""

    rarity: np.ndarray
    words: np.ndarray
    counts: np.ndarray


class GainModel:
    """Estimate by request the probability that each model is right, and the gain of the large one."""

    def __init__(self, fitted: GainParameters, weights: GainWeights | None = None) -> None:
        self.fitted, self._weights = fitted, weights

    @classmethod
    def fit(cls, texts: Sequence[str], outcomes: Mapping[str, Sequence[float]]) -> GainModel:
        """Fit on requests and whether each model was right on them: 1 or 0, NaN where it was not asked.

        `outcomes` are by model, `small` and `large` among them where a gain is wanted; without `large` it is taken to
        be always right.
        """
        from sklearn.utils.extmath import randomized_svd

        targets = {name: np.asarray(values, dtype=np.float64) for name, values in outcomes.items()}
        if not texts:
            return cls(GainParameters(models={name: _learn(np.zeros((0, 0)), np.zeros(0)).outcome for name in targets}))
        hashed, counts = hashed_words(texts), text_features(texts)
        rarity = 1 + np.log((1 + len(texts)) / (1 + np.bincount(hashed.indices, minlength=N_HASH_BUCKETS)))
        weighed, (centres, scales) = _weighed(hashed, rarity), means_and_scales(counts)
        n = min(N_COMPONENTS, *weighed.shape)
        basis = randomized_svd(weighed, n, n_iter=2, transpose=False, random_state=0)[2].T  # (buckets, n)
        x = np.hstack([weighed @ basis, (counts - centres) / scales])
        found = {name: _learn(x, target) for name, target in targets.items()}
        of_words, of_counts = np.split(np.stack([one.weights for one in found.values()], axis=1), [n])
        of_counts = of_counts / scales[:, None]
        models = {
            name: one.outcome.model_copy(update={"bias": one.outcome.bias - shift})
            for (name, one), shift in zip(found.items(), (centres @ of_counts).tolist(), strict=True)
        }
        gains = _gain({name: one.held_out for name, one in found.items()}) if SMALL in found else np.zeros(1)
        flat = gains.max() - gains.min() < 1e-9
        quantiles = () if flat else tuple(np.quantile(gains, np.linspace(0, 1, 101)).tolist())
        known = any(one.known for one in models.values())
        weights = GainWeights(rarity, basis @ of_words, of_counts) if known else None
        return cls(GainParameters(models=models, quantiles=quantiles), weights)

    def probabilities(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return by model a probability in [0, 1] for each text."""
        models = self.fitted.models
        if self._weights is None or not texts:
            return {name: np.full(len(texts), one.rate) for name, one in models.items()}
        words = _weighed(hashed_words(texts), self._weights.rarity)
        logits = words @ self._weights.words + text_features(texts) @ self._weights.counts
        return {
            name: one.steps.at_each(column + one.bias) if one.known else np.full(len(texts), one.rate)
            for (name, one), column in zip(models.items(), logits.T, strict=True)
        }

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Return for each text the gain in [-1, 1]: how much likelier the large model is right than the small one."""
        return _gain(self.probabilities(texts))

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
        if not (folder / "gain.json").exists():
            return None
        fitted = GainParameters.load(folder / "gain.json")
        if not any(one.known for one in fitted.models.values()):
            return cls(fitted)
        from safetensors.numpy import load_file

        return cls(fitted, GainWeights(**load_file(folder / "gain.safetensors")))


def _gain(probabilities: Mapping[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = probabilities.get(LARGE, np.ones(1)) - probabilities[SMALL]
    return found


class _Learned(NamedTuple):
    """One model's outcome with its weights, and its held-out probabilities by row."""

    outcome: ModelOutcome
    weights: np.ndarray
    held_out: np.ndarray


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
    outcome = ModelOutcome(rate=rate, known=True, why=why, n_rows=n, bias=bias, steps=steps)
    return _Learned(outcome, model.coef_[0], held_out)


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
    gains = plain - losses
    known = gains.mean() > max(MIN_GAIN, gains.std(ddof=1) / math.sqrt(len(gains)))  # by more than a standard error
    why = f"5-fold log loss on {len(target)} rows {losses.mean():.3f}, of their mean {plain.mean():.3f}"
    return bool(known), f"{why}: {'learned' if known else 'nothing learned'}", inverse_penalty, scores


def log_losses(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the log loss of each row in nats, for targets of 0 and 1."""
    p = np.clip(probabilities, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    losses: np.ndarray = -np.log(np.where(target == 1, p, 1 - p))
    return losses


def _fit(x: np.ndarray, target: np.ndarray, inverse_penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=inverse_penalty, max_iter=100, solver="newton-cholesky").fit(x, target)
