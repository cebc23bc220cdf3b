"""Means of several series on the same rows, shrunk towards their common mean: chance favours the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def shrunk_means(series: Sequence[Mapping[str, float]], *, least_spread: float, unknown: float) -> list[float]:
    """Return the mean of each series of values by row, shrunk towards the mean of all by empirical Bayes.

    Measured differences d between series are true ones, of variance t, and sampling error, of variance w; the best
    guess of a true one is d t / (t + w) (Efron and Morris 1975). w is read from differences by row, which rows that are
    difficult for all do not enlarge; t is what the spread of the measured ones is above w, at least `least_spread`².
    Without that floor (their positive part) differences that chance could explain would count as none; a mean of the
    Bayesian bootstrap would shrink nothing.

    A series of fewer rows is compared on these with the mean of those that have all; where none has, means count as
    measured. `unknown` is that of a series without a row.
    """
    rows = {key for one in series for key in one}
    complete = [one for one in series if len(one) == len(rows)]
    if not rows or not complete:
        return [float(np.mean(list(one.values()) or [unknown])) for one in series]
    mean = {key: sum(one[key] for one in complete) / len(complete) for key in rows}
    apart = [np.array([value - mean[key] for key, value in one.items()] or [0.0]) for one in series]
    level, m = sum(mean.values()) / len(rows), len(series)
    if m == 1:
        return [level]
    found = level + np.array([one.mean() for one in apart])
    of_rows = [float(one.var(ddof=1)) for one in apart if len(one) > 1]  # pooled, so that none overtakes on equal rows
    n = np.array([len(one) for one in apart])
    by_chance = (sum(of_rows) / len(of_rows) if of_rows else math.inf) * m / (m - 1) / n
    true = max(least_spread**2, float(found.var(ddof=1)) - float(by_chance.mean()))
    shrunk = found.mean() + true / (true + by_chance) * (found - found.mean())
    return [float(one) for one in shrunk]
