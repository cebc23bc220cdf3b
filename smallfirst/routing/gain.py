"""Predict by request how much likelier a larger model is right than a smaller one, from rows whose outcomes are known.

Hashed words and surface features go into one calibrated logistic regression a model, and into a ridge regression of the
gain itself; the gain is the mean of both. Where held-out rows are not predicted better than by their mean outcome, that
mean is returned.
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
from smallfirst.routing.confidence_head import FOLDS, log_losses, logistic, means_and_scales, significantly_lower

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
N_HASH_BUCKETS = 2**15
"""Buckets that words and word pairs are hashed to."""
N_COMPONENTS = 64
"""Components of the words' space (truncated SVD); their weights are projected back."""
QUESTION_WORD = re.compile(r"\b(?:who|whom|whose|what|when|where|why|how|which)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")
INVERSE_PENALTIES = (0.003, 0.03, 0.3, 3.0)
"""Values of C for the logistic regressions, strongest penalty first; chosen by cross-validation."""
RIDGE_PENALTIES = tuple(10.0 ** (k / 2) for k in range(9))
"""Penalties of the ridge regression; chosen by leave-one-out squared error (Allen 1974)."""
MIN_GAIN = 1e-3
"""Smallest gain in log loss, in nats, that counts."""
SMALL, LARGE = "small", "large"
"""The models that the gain lies between."""


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


def text_features(texts: Sequence[str]) -> np.ndarray:
    """Return the surface features of each text (texts, features)."""
    return np.array([surface_features(text) for text in texts], dtype=np.float64).reshape(-1, N_SURFACE_FEATURES)


def hashed_words(texts: Sequence[str]) -> Any:
    """Return which words and word pairs occur, as a sparse matrix (texts, N_HASH_BUCKETS) of 0 and 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        n_features=N_HASH_BUCKETS, ngram_range=(1, 2), binary=True, norm=None, alternate_sign=False
    )
    return hashing.transform(texts)


def weighed_words(hashed: Any, rarity: np.ndarray) -> Any:
    """Return the rows weighed by `rarity` (N_HASH_BUCKETS,), each of unit length."""
    from sklearn.preprocessing import normalize

    return normalize(hashed.multiply(rarity).tocsr())


def directions(rows: Any) -> np.ndarray:
    """Return the first components (columns, n) of the rows by truncated SVD (Halko et al. 2011)."""
    from sklearn.utils.extmath import randomized_svd

    if not (n := min(N_COMPONENTS, *rows.shape)):
        return np.zeros((rows.shape[1], 0))
    return np.asarray(randomized_svd(rows, n, n_iter=2, transpose=False, random_state=0)[2].T)


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
    direct: float | None = None
    """Intercept of the regression of the gain itself, whose weights are the last column; None without it."""
    quantiles: tuple[float, ...] = ()
    """Held-out gains at 0, 1, … 100 % of the rows, rising; empty if the gain is the same for all."""

    @property
    def why(self) -> str:
        """The result of the fit, a sentence a model."""
        return "; ".join(f"{name}: {one.why}" for name, one in self.models.items())


class GainWeights(NamedTuple):
    """Arrays of the fitted models; all but `rarity` have a column for each, and one for the direct regression."""

    rarity: np.ndarray
    words: np.ndarray
    counts: np.ndarray


class GainModel:
    """Estimate by request the probability that each model is right, and the gain of the large one."""

    def __init__(self, fitted: GainParameters, weights: GainWeights | None = None) -> None:
        self.fitted, self._weights = fitted, weights

    @classmethod
    def fit(cls, texts: Sequence[str], outcomes: Mapping[str, Sequence[bool | float]]) -> GainModel:
        """Fit on requests and how well each model did on them, in [0, 1] (True: right; NaN: not asked).

        `outcomes` are by model, `small` and `large` among them where a gain is wanted; without `large` it is taken to
        be always right. Raise ValueError if the lengths differ or an outcome leaves [0, 1].
        """
        targets = {name: _checked(texts, values) for name, values in outcomes.items()}
        if not texts:
            return cls(GainParameters(models={name: _learn(np.zeros((0, 0)), np.zeros(0)).outcome for name in targets}))
        hashed, counts = hashed_words(texts), text_features(texts)
        rarity = 1 + np.log((1 + len(texts)) / (1 + np.bincount(hashed.indices, minlength=N_HASH_BUCKETS)))
        weighed, (centres, scales) = weighed_words(hashed, rarity), means_and_scales(counts)
        basis = directions(weighed)
        x = np.hstack([weighed @ basis, (counts - centres) / scales])
        found = {name: _learn(x, target) for name, target in targets.items()}
        direct = _regress(x, targets[LARGE] - targets[SMALL]) if {SMALL, LARGE} <= targets.keys() else None
        weights = np.stack([one.weights for one in (*found.values(), direct) if one is not None], axis=1)
        of_words, of_counts = np.split(weights, [basis.shape[1]])
        of_counts = of_counts / scales[:, None]
        shifts = (centres @ of_counts).tolist()
        models = {
            name: one.outcome.model_copy(update={"bias": one.outcome.bias - shift})
            for (name, one), shift in zip(found.items(), shifts, strict=False)
        }
        held_out = _gain({name: one.held_out for name, one in found.items()}) if SMALL in found else np.zeros(0)
        fitted = GainParameters(
            models=models,
            direct=direct and direct.intercept - shifts[-1],
            quantiles=_quantiles(_mean_gain(held_out, direct and direct.held_out)),
        )
        known = direct is not None or any(one.known for one in models.values())
        return cls(fitted, GainWeights(rarity, basis @ of_words, of_counts) if known else None)

    def probabilities(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return by model a probability in [0, 1] for each text."""
        return self._predict(texts)[0]

    def _predict(self, texts: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Return the probabilities by model, and the gains of the direct regression."""
        models = self.fitted.models
        if self._weights is None or not texts:
            return {name: np.full(len(texts), one.rate) for name, one in models.items()}, None
        words = weighed_words(hashed_words(texts), self._weights.rarity)
        logits = words @ self._weights.words + text_features(texts) @ self._weights.counts
        probabilities = {
            name: one.steps.at_each(column + one.bias) if one.known else np.full(len(texts), one.rate)
            for (name, one), column in zip(models.items(), logits.T, strict=False)
        }
        return probabilities, None if self.fitted.direct is None else logits[:, -1] + self.fitted.direct

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Return for each text the gain in [-1, 1]: how much likelier the large model is right than the small one."""
        probabilities, direct = self._predict(texts)
        return _mean_gain(_gain(probabilities), direct)

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
        """Return the model saved in a folder; None without one."""
        if not (folder / "gain.json").exists():
            return None
        fitted = GainParameters.load(folder / "gain.json")
        if fitted.direct is None and not any(one.known for one in fitted.models.values()):
            return cls(fitted)
        from safetensors.numpy import load_file

        return cls(fitted, GainWeights(**load_file(folder / "gain.safetensors")))


class _Learned(NamedTuple):
    """One model's outcome with its weights, and its held-out probabilities by row."""

    outcome: ModelOutcome
    weights: np.ndarray
    held_out: np.ndarray


class _Regression(NamedTuple):
    """A linear regression, and its leave-one-out predictions by row."""

    intercept: float
    weights: np.ndarray
    held_out: np.ndarray


def _gain(probabilities: Mapping[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = probabilities.get(LARGE, np.ones(1)) - probabilities[SMALL]
    return found


def _mean_gain(difference: np.ndarray, direct: np.ndarray | None) -> np.ndarray:
    return difference if direct is None else np.clip((difference + direct) / 2, -1.0, 1.0)


def _quantiles(gains: np.ndarray) -> tuple[float, ...]:
    if not len(gains) or gains.max() - gains.min() < 1e-9:
        return ()
    return tuple(np.quantile(gains, np.linspace(0, 1, 101)).tolist())


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


def _regress(x: np.ndarray, gains: np.ndarray) -> _Regression | None:
    """Fit the gain itself; None if rows left out are not predicted better than by the mean of the others."""
    from sklearn.linear_model import RidgeCV

    there = ~np.isnan(gains)
    gain, n = gains[there], int(there.sum())
    if n < MIN_ROWS or gain.min() == gain.max():
        return None
    fitted = RidgeCV(alphas=RIDGE_PENALTIES, store_cv_results=True).fit(x[there], gain)
    errors = fitted.cv_results_[:, RIDGE_PENALTIES.index(float(fitted.alpha_))]
    if errors.mean() >= ((gain - gain.mean()) ** 2).mean() * (n / (n - 1)) ** 2:
        return None
    predicted = fitted.predict(x)
    toward = np.sign(predicted[there] - gain)  # leaving a row out moves its prediction away from its gain
    held_out = predicted.copy()
    held_out[there] = gain + toward * np.sqrt(errors)
    return _Regression(float(fitted.intercept_), fitted.coef_, held_out)


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


def _checked(texts: Sequence[str], values: Sequence[bool | float]) -> np.ndarray:
    target = np.asarray(values, dtype=np.float64)
    if len(texts) != len(target):
        raise ValueError(f"rows differ in number: {len(texts)} texts, {len(target)} outcomes")
    if not all(0 <= outcome <= 1 for outcome in target[~np.isnan(target)]):
        raise ValueError(f"outcomes must lie in [0, 1] (got {np.nanmin(target):g} to {np.nanmax(target):g})")
    return target
