"""Accuracy by number of training rows, and a forecast by a power law (Hestness et al. 2017) through the points."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import stats as scipy_stats

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate
from smallfirst.data.dataset import Dataset, Example

DEFAULT_ROWS_PER_LABEL = (5, 10, 30)
MIN_SIZES = 3
MAX_EXTRAPOLATION = 4
"""A forecast is for at most this many times the largest measured number of rows."""
MAX_INTERVAL_WIDTH = 0.1
"""There is no forecast if its interval would be wider."""
_RATES = np.linspace(0.05, 2.0, 79)
_DRAWS = 500


class LearningPoint(Record):
    """One candidate trained on part of the rows."""

    n_rows: int
    candidate: str
    accuracy: Estimate


class LearningCurve(Record):
    """All measured points."""

    points: tuple[LearningPoint, ...]


class PowerLaw(Record):
    """accuracy = limit - gap * rows ** -rate."""

    limit: float
    """Accuracy with infinitely many rows, at most 1."""
    gap: float
    """Distance from the limit with one row, at least 0."""
    rate: float
    """How fast the gap closes, in [0.05, 2]."""

    def at(self, n_rows: int) -> float:
        return float(np.clip(self.limit - self.gap * n_rows**-self.rate, 0, 1))


class Forecast(Record):
    """Expected accuracy of a candidate with more rows, or the reason why there is none."""

    candidate: str
    n_rows: int
    accuracy: Estimate | None
    law: PowerLaw | None
    why: str
    """The forecast, or the reason against one, in words."""


def subsets_per_label(train: Dataset, numbers: Sequence[int] = DEFAULT_ROWS_PER_LABEL) -> tuple[Dataset, ...]:
    """Return nested subsets with at most these numbers (from 1) of rows per label, fewest first, without the whole."""
    wrong = [number for number in numbers if number < 1]
    if wrong:
        raise ConfigError(f"rows per label must be at least 1 (got {', '.join(map(str, wrong))})")
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(train.examples, key=lambda e: e.key):
        by_label[example.answer].append(example)
    parts = []
    for number in sorted(set(numbers)):
        keys = {example.key for examples in by_label.values() for example in examples[:number]}
        parts.append(
            train.subset(f"{train.name}:{number} per label", tuple(e for e in train.examples if e.key in keys))
        )
    return _growing(parts, train)


def forecast(points: Sequence[LearningPoint], n_rows: int) -> Forecast:
    """Forecast the accuracy of one candidate with `n_rows` rows from at least three sizes that rise along a power law.

    The interval comes from drawing every point within its own interval and fitting again. Raises ValueError unless the
    points are of one candidate.
    """
    candidates = sorted({point.candidate for point in points})
    if len(candidates) != 1:
        raise ValueError(f"a forecast is for one candidate, not for {', '.join(candidates) or 'none'}")
    curve = sorted(points, key=lambda p: p.n_rows)
    objection = _objection(curve, n_rows)
    if objection:
        return Forecast(candidate=candidates[0], n_rows=n_rows, accuracy=None, law=None, why=objection)
    rows = np.array([p.n_rows for p in curve], dtype=np.float64)
    value, error = np.array([p.accuracy.value for p in curve]), _errors(curve)
    law = PowerLaw(**dict(zip(("limit", "gap", "rate"), _fit(rows, value[None], error)[0].tolist(), strict=True)))
    drawn = np.random.default_rng(0).normal(value, error, (_DRAWS, len(curve)))
    limit, gap, rate = _fit(rows, drawn, error).T
    low, high = np.quantile(np.clip(limit - gap * n_rows**-rate, 0, 1), [0.025, 0.975])
    reached = law.at(n_rows)
    low, high = min(float(low), reached), max(float(high), reached)
    off = sum(((law.at(p.n_rows) - p.accuracy.value) / e) ** 2 for p, e in zip(curve, error, strict=True))
    if scipy_stats.chi2.sf(off, max(1, len(curve) - 3)) < 0.01:
        why = "the points do not follow a power law: they lie further from the best one than chance allows"
    elif high - low > MAX_INTERVAL_WIDTH:
        why = f"at {n_rows:,} rows anything from {low:.3f} to {high:.3f} is possible"
    else:
        estimate = Estimate(value=reached, low=low, high=high, n=curve[-1].accuracy.n)
        why = f"{n_rows:,} rows would give about {estimate}, against {curve[-1].accuracy} with {curve[-1].n_rows:,}"
        return Forecast(candidate=candidates[0], n_rows=n_rows, accuracy=estimate, law=law, why=why)
    return Forecast(candidate=candidates[0], n_rows=n_rows, accuracy=None, law=None, why=why)


def _growing(parts: Sequence[Dataset], whole: Dataset) -> tuple[Dataset, ...]:
    """Drop empty subsets and those as large as the next."""
    return tuple(part for part, larger in pairwise([*parts, whole]) if 0 < len(part) < len(larger))


def _objection(curve: Sequence[LearningPoint], n_rows: int) -> str:
    """Return the reason why these points allow no forecast; empty if they do."""
    sizes = sorted({point.n_rows for point in curve})
    if sizes[0] < 1:
        return f"a point was measured with {sizes[0]} rows"
    if len(sizes) < MIN_SIZES:
        return f"{MIN_SIZES} numbers of rows are needed and {len(sizes)} were measured"
    if n_rows > MAX_EXTRAPOLATION * sizes[-1]:
        return f"{n_rows:,} rows are more than {MAX_EXTRAPOLATION} times the {sizes[-1]:,} measured"
    first, last = curve[0], curve[-1]
    noise = float(np.hypot(*_errors([first, last])))
    if last.accuracy.value - first.accuracy.value < 1.96 * noise:
        return f"the rise from {first.n_rows:,} to {last.n_rows:,} rows could be chance"
    return ""


def _errors(curve: Sequence[LearningPoint]) -> np.ndarray:
    """Return the standard error of each point from the width of its 95 % interval."""
    return np.array([max((p.accuracy.high - p.accuracy.low) / 3.92, 1e-6) for p in curve])


def _fit(rows: np.ndarray, values: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return (draws, 3): limit, gap and rate with the least weighted squares for each row of values (draws, points).

    For a fixed rate the law is a line, whose weighted fit has a closed form; rates are tried on a grid.
    """
    weight = 1 / error**2
    x = rows ** -_RATES[:, None]  # (rates, points)
    x_mean = (weight * x).sum(1) / weight.sum()  # (rates,)
    y_mean = (weight * values).sum(1) / weight.sum()  # (draws,)
    spread = (weight * (x - x_mean[:, None]) ** 2).sum(1)
    slope = ((values - y_mean[:, None]) * weight) @ (x - x_mean[:, None]).T / spread  # (draws, rates)
    gap = np.maximum(-slope, 0)
    limit = y_mean[:, None] + gap * x_mean
    # Where the limit would be above 1, it is held at 1 and only the slope is fitted.
    held = np.maximum(((1 - values) * weight) @ x.T / (weight * x**2).sum(1), 0)
    gap, limit = np.where(limit > 1, held, gap), np.minimum(limit, 1)
    off = values[:, None, :] - (limit[..., None] - gap[..., None] * x)  # (draws, rates, points)
    best = (weight * off**2).sum(2).argmin(1)
    draws = np.arange(len(values))
    return np.stack([limit[draws, best], gap[draws, best], _RATES[best]], axis=1)
