"""One-sided upper bounds on the mean of bounded losses, by betting, valid for any distribution and number of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_BETS = np.concatenate([(np.arange(32) + 0.5) / 32, [0.999]])
"""Shares of the largest bet that cannot lose everything; the last one is for losses that never occurred."""
_WEIGHTS = np.concatenate([np.full(32, 0.75 / 32), [0.25]])


def betting_p_value(values: Sequence[float] | np.ndarray, mean: float, *, low: float = 0.0, high: float = 1.0) -> float:
    """Return the p-value of "the true mean is `mean` or more", for independent values in [low, high].

    Bets at fair odds against the claim; 1 / final wealth is the p-value (Waudby-Smith and Ramdas 2024). Independent of
    the order of rows. No values give 1. Raise ValueError if one leaves the range.
    """
    scaled = _scaled(values, low, high)
    at = (mean - low) / (high - low)
    if scaled.size == 0 or at <= 0:
        return 1.0
    if at >= 1:
        return 0.0 if at > 1 else 1.0
    return min(1.0, math.exp(-_log_wealth(*np.unique(scaled, return_counts=True), at)))


def betting_upper_bound(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, low: float = 0.0, high: float = 1.0
) -> float:
    """Return the least mean that `betting_p_value` rejects; `high` without values. Raise ValueError out of range."""
    scaled = _scaled(values, low, high)
    if scaled.size == 0:
        return high
    level, counted = math.log(1 / (1 - confidence)), np.unique(scaled, return_counts=True)
    rejected, possible = 1.0, float(scaled.mean())
    while rejected - possible > 1e-7:  # wealth grows with the claimed mean, so there is one crossing
        middle = (rejected + possible) / 2
        rejected, possible = (middle, possible) if _log_wealth(*counted, middle) >= level else (rejected, middle)
    return low + rejected * (high - low)


def _scaled(values: Sequence[float] | np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (np.asarray(values, dtype=np.float64) - low) / (high - low)
    if scaled.size and not (scaled.min() >= -1e-12 and scaled.max() <= 1 + 1e-12):
        raise ValueError(f"values must lie in [{low:g}, {high:g}]")
    return np.clip(scaled, 0.0, 1.0)


def _log_wealth(seen: np.ndarray, counts: np.ndarray, mean: float) -> float:
    """Return the log of the final wealth against "the mean is `mean` or more", 0 < mean < 1; values with counts.

    A bet of share b stakes b / (1 - mean) on "below the mean": a row of loss x multiplies the wealth by
    1 + b (mean - x) / (1 - mean), which is above 0 for every x in [0, 1] and grows with the mean.
    """
    logs = np.log1p(np.outer(_BETS / (1 - mean), mean - seen)) @ counts
    top = float(logs.max())
    return top + math.log(float(_WEIGHTS @ np.exp(logs - top)))
