"""One-sided bounds on means of bounded losses: how large may the true mean be, given what was seen.

Exact for any distribution within the range and any number of rows, where a normal interval is a hope: a cost, a
difference of two answers and a share judged by another model are no coin flips, so the exact binomial bound of
`smallfirst.stats.intervals` does not speak of them. What they cost is width, mostly where rows are few;
`benchmarks/results/certificates.md` shows by how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from smallfirst.stats.intervals import upper_bound

_BETS = np.concatenate([(np.arange(32) + 0.5) / 32, [0.999]])
"""Shares of the largest bet that cannot lose everything; the last one is for losses that were never seen."""
_WEIGHTS = np.concatenate([np.full(32, 0.75 / 32), [0.25]])
_GUESS_SHARE = 0.2
"""Share of 1 - confidence spent on the many judged rows; the few with gold are the wide term and get the rest."""


def betting_p_value(values: Sequence[float] | np.ndarray, mean: float, *, low: float = 0.0, high: float = 1.0) -> float:
    """p-value of «the true mean is `mean` or more», for independent values in [low, high].

    A gambler bets against the claim on every row; fair odds make his final wealth at most 1 on average if the claim is
    true, so 1 / wealth is a p-value (Waudby-Smith and Ramdas 2024). His capital is spread over constant bets, which
    makes the result independent of the order of rows. No value gives 1. Raises ValueError if one leaves the range.
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
    """One-sided upper bound on the mean of values in [low, high]: the least one that `betting_p_value` refutes.

    No value gives `high`. Raises ValueError if one leaves the range.
    """
    scaled = _scaled(values, low, high)
    if scaled.size == 0:
        return high
    level, counted = math.log(1 / (1 - confidence)), np.unique(scaled, return_counts=True)
    refuted, stands = 1.0, float(scaled.mean())
    while refuted - stands > 1e-7:  # wealth grows with the claimed mean, so bisection finds the one place
        middle = (refuted + stands) / 2
        refuted, stands = (middle, stands) if _log_wealth(*counted, middle) >= level else (refuted, middle)
    return low + refuted * (high - low)


def rows_to_refute(values: Sequence[float] | np.ndarray, mean: float, *, level: float, most: int) -> int | None:
    """Fewest rows at which values in [0, 1] spread like these have a betting p-value of at most `level`.

    None if the mean seen is not below `mean`, or more than `most` rows are needed.
    """
    scaled = _scaled(values, 0.0, 1.0)
    if scaled.size == 0 or scaled.mean() >= mean or not 0 < mean < 1:
        return None
    seen, counts = np.unique(scaled, return_counts=True)

    def enough(n: int) -> bool:
        return _log_wealth(seen, counts * (n / scaled.size), mean) >= math.log(1 / level)

    if not enough(most):
        return None
    short, plenty = 0, most
    while plenty - short > 1:
        middle = (short + plenty) // 2
        short, plenty = (short, middle) if enough(middle) else (middle, plenty)
    return plenty


def empirical_bernstein(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> float:
    """One-sided upper bound on the mean of values in [0, 1] from their spread (Maurer and Pontil 2009, theorem 4).

    In closed form, and wider than `betting_upper_bound` nearly always. Fewer than two values give 1.
    """
    scaled = _scaled(values, 0.0, 1.0)
    if scaled.size < 2:
        return 1.0
    log = math.log(2 / (1 - confidence))
    spread = math.sqrt(2 * float(scaled.var(ddof=1)) * log / scaled.size)
    return min(1.0, float(scaled.mean()) + spread + 7 * log / (3 * (scaled.size - 1)))


def prediction_powered_upper_bound(
    judged_wrong: Sequence[bool] | np.ndarray,
    *,
    gold_wrong: Sequence[bool] | np.ndarray,
    gold_judged_wrong: Sequence[bool] | np.ndarray,
    confidence: float = 0.95,
) -> float:
    """One-sided upper bound on an error rate from many rows judged by a model and a few of them with gold labels.

    True error = judged error + mean of (true - judged), the second from the gold rows (Angelopoulos et al. 2023). Valid
    for any number of rows: 1 - confidence is split over an exact bound on the first and a betting bound on the second.
    The gold rows must be a random part of all rows; they may be among the judged ones. Raises ValueError if the gold
    rows differ in number.
    """
    judged, spent = np.asarray(judged_wrong, dtype=bool), (1 - confidence) * _GUESS_SHARE
    first = upper_bound(int(judged.sum()), judged.size, confidence=1 - spent)
    second = betting_upper_bound(
        corrections(gold_wrong, gold_judged_wrong), confidence=confidence + spent, low=-1.0, high=1.0
    )
    return min(1.0, first + second)


def prediction_powered_shows(
    judged_wrong: tuple[int, int], correction: np.ndarray, at_most: float, *, level: float
) -> bool:
    """True if `prediction_powered_upper_bound` at 1 - level is at most `at_most`, at a fraction of its time.

    From the judged errors and rows, and the `corrections` of the gold rows.
    """
    first = upper_bound(*judged_wrong, confidence=1 - level * _GUESS_SHARE)
    return betting_p_value(correction, at_most - first, low=-1.0, high=1.0) <= level * (1 - _GUESS_SHARE)


def corrections(gold_wrong: Sequence[bool] | np.ndarray, gold_judged_wrong: Sequence[bool] | np.ndarray) -> np.ndarray:
    """True minus judged error by gold row, in {-1, 0, 1}. Raises ValueError if the two differ in number."""
    true, judged = np.asarray(gold_wrong, dtype=float), np.asarray(gold_judged_wrong, dtype=float)
    if true.shape != judged.shape:
        raise ValueError(f"gold rows differ in number: {true.size} and {judged.size}")
    return np.asarray(true - judged)


def _scaled(values: Sequence[float] | np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (np.asarray(values, dtype=np.float64) - low) / (high - low)
    if scaled.size and not (scaled.min() >= -1e-12 and scaled.max() <= 1 + 1e-12):
        raise ValueError(f"values must lie in [{low:g}, {high:g}]")
    return np.clip(scaled, 0.0, 1.0)


def _log_wealth(seen: np.ndarray, counts: np.ndarray, mean: float) -> float:
    """Log of the gambler's final wealth against «the mean is `mean` or more», 0 < mean < 1, values with their counts.

    A bet of share b stakes b / (1 - mean) on «below the mean»: a row of loss x multiplies it by
    1 + b (mean - x) / (1 - mean), which is above 0 for every x in [0, 1], and grows with the mean.
    """
    logs = np.log1p(np.outer(_BETS / (1 - mean), mean - seen)) @ counts
    top = float(logs.max())
    return top + math.log(float(_WEIGHTS @ np.exp(logs - top)))
