"""Bars against the large model: both answered the same rows, and each row is compared with itself.

The interval for «right or wrong» is Tango's score interval (1998), McNemar's test turned into an interval. Unlike the
Wald kinds it never falls when an answer becomes right, and rows without any disagreement do not count as certainty:
40 equal rows leave 0.088 open, not 0.047. Graded scores have Agresti and Min's interval (2005), its lower end made to
keep that law too (`paired_score_difference`). A repeated row counts once, at the candidate's worst answer and the large
model's best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.gate.check_result import (
    MAX_ADVISED_ROWS,
    CheckResult,
    ConfidenceLevel,
    check_minimum,
    not_measured,
    rows_for_width,
)
from smallfirst.gate.metrics import cap_lower_bound
from smallfirst.stats import intervals as stats
from smallfirst.stats.intervals import Estimate

HALVINGS = 60
"""Of an interval of length 2: to the last digit of a float."""
MOST_CLIPS = 1000
"""Rounds until the place to clip at stands still; a dozen are usual."""
OTHER_ROWS = "measure the large model on the same rows, or on a sample of them"


def paired_score_interval(only_first: int, only_second: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Share right of the first minus share right of the second on the same `n` rows (Tango 1998).

    `only_first` and `only_second` count the rows that only one of the two gets right. n = 0 gives [-1, 1] around 0.
    """
    if n == 0:
        return Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    z = float(scipy_stats.norm.ppf(0.5 + confidence / 2))
    low, high = _lower_end(only_first, only_second, n, z), -_lower_end(only_second, only_first, n, z)
    return Estimate(value=(only_first - only_second) / n, low=low, high=high, n=n)


def _lower_end(a: float, b: float, n: int, z: float) -> float:
    """The smallest difference that the score test at quantile `z` does not refuse, by bisection."""
    refused, kept = -1.0, (a - b) / n
    for _ in range(HALVINGS):
        middle = (refused + kept) / 2
        # The likeliest share of «only second» if the difference were `middle`: the larger root of a quadratic.
        linear, constant = (2 * n - a + b) * middle - a - b, -b * middle * (1 - middle)
        share = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        spread = math.sqrt(max(0.0, n * (2 * share + middle * (1 - middle))))
        refused, kept = (middle, kept) if a - b - n * middle >= z * spread else (refused, middle)
    return refused


def paired_score_difference(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean score of the first minus mean score of the second on the same rows, for scores in [0, 1].

    As `stats.paired_mean_difference`, but its lower end never falls when the first scores higher. There, one row far
    above the others adds more to the spread than to the mean; here, differences are clipped where that begins, and what
    is shown for the clipped mean is shown for the mean. Raises ValueError as that does.
    """
    whole = stats.paired_mean_difference(first, second, confidence=confidence)
    if whole.n == 0:
        return whole
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    z, m = float(scipy_stats.norm.ppf(0.5 + confidence / 2)), whole.n + 2
    # With the two pairs that Agresti and Min add, the lower end is (S - z √(Q + 1 - S²/m)) / m for the sum S and the
    # sum of squares Q: concave in every difference, with its maximum where that is S/m + √(Q + 1 - S²/m) / z.
    clipped = differences
    for _ in range(MOST_CLIPS):
        total = float(clipped.sum())
        highest = total / m + math.sqrt(max(0.0, float(clipped @ clipped) + 1 - total**2 / m)) / z
        before, clipped = clipped, np.minimum(differences, highest)
        if np.allclose(before, clipped, rtol=0, atol=1e-12):
            break
    low = stats.paired_mean_difference(clipped.tolist(), [0.0] * whole.n, confidence=confidence).low
    return whole.model_copy(update={"low": low})


def check_not_worse(
    margin: float, candidate: Evaluation, large: Evaluation | None, level: ConfidenceLevel
) -> CheckResult:
    """The line of the paired difference in accuracy, on the rows that both answered."""
    bar = f"at most {margin:.3f} less accurate than the large model"
    pairs = _pairs(bar, candidate, large)
    if isinstance(pairs, CheckResult):
        return pairs
    ours = sum(small.correct and not big.correct for small, big in pairs)
    theirs = sum(big.correct and not small.correct for small, big in pairs)
    found = paired_score_interval(ours, theirs, len(pairs), confidence=level.confidence)

    def low_at(rows: int) -> float:
        return _lower_end(ours * rows / len(pairs), theirs * rows / len(pairs), rows, level.z)

    measured = level.show(found, f" of {len(candidate.rows)} rows paired")
    return check_minimum(-margin, found, (bar, measured), lambda: _fewest_rows(low_at, -margin, len(pairs)))


def check_score_not_worse(
    margin: float, candidate: Evaluation, large: Evaluation | None, level: ConfidenceLevel
) -> CheckResult:
    """The line of the paired mean difference in graded score, on the rows that both answered."""
    bar = f"score at most {margin:.3f} below the large model's"
    pairs = _pairs(bar, candidate, large)
    if isinstance(pairs, CheckResult):
        return pairs
    ours, theirs = [small.score for small, _ in pairs], [big.score for _, big in pairs]
    if not all(0 <= score <= 1 for score in (*ours, *theirs)):
        return not_measured(bar, "a score is not in [0, 1]", "mend the scorer, then evaluate both models again")
    found = cap_lower_bound(paired_score_difference(ours, theirs, confidence=level.confidence), level)
    measured = level.show(found, f" of {len(candidate.rows)} rows paired")
    return check_minimum(-margin, found, (bar, measured), lambda: rows_for_width(found, -margin))


def _fewest_rows(low_at: Callable[[int], float], bar: float, n: int) -> int | None:
    """About the fewest rows above `n` at which the same rates have their lower end at `bar`; None if none do."""
    enough = max(1, n)
    while low_at(enough) < bar:
        enough *= 2
        if enough > 2 * MAX_ADVISED_ROWS:
            return None
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if low_at(middle) >= bar else (middle, enough)
    return enough


class _Outcome(NamedTuple):
    correct: bool
    score: float


def _pairs(bar: str, candidate: Evaluation, large: Evaluation | None) -> list[tuple[_Outcome, _Outcome]] | CheckResult:
    """Outcomes of both by row, in the order of keys, so that the order of rows changes nothing; or the line without."""
    n = len(candidate.rows)
    if large is None:
        return not_measured(bar, "the large model was not measured", OTHER_ROWS)
    ours, theirs = _by_key(candidate.rows, least=True), _by_key(large.rows, least=False)
    both = [(ours[key], theirs[key]) for key in sorted(ours.keys() & theirs.keys())]
    if not both:
        return not_measured(bar, f"n=0 of {n} rows paired", OTHER_ROWS)
    if candidate is large or candidate.fingerprint() == large.fingerprint():
        return CheckResult(bar=bar, measured=f"is the large model itself n={n}", passed=True)
    return both


def _by_key(rows: Iterable[EvaluatedRow], *, least: bool) -> dict[str, _Outcome]:
    choose = min if least else max
    found: dict[str, _Outcome] = {}
    for row in rows:
        now = _Outcome(row.correct, row.score)
        before = found.get(row.key, now)
        found[row.key] = _Outcome(choose(before.correct, now.correct), choose(before.score, now.score))
    return found
