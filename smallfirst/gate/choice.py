"""Which candidate the gate confirms: chosen on selection rows, before the test rows are looked at.

The rule is fixed beforehand. The smallest candidate whose metrics on selection rows would meet the gate with as many
rows as the test has is chosen, else the most accurate one. It and the candidate that task.yaml names share half of the
gate's level, all others the other half, so the verdicts on test rows hold together whichever goes live. If the chosen
one fails, the smallest other one that passes takes its place; its figure was picked on test rows, and it is said.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckInputs, CheckResult, ConfidenceLevel
from smallfirst.gate.metrics import MetricThresholds, check_metrics


def choose_candidate(gate: MetricThresholds, measured: Sequence[Evaluation], n_test: int) -> str | None:
    """Return the candidate to confirm on `n_test` rows; None without evaluations on selection rows, smallest first."""
    for evaluation in measured:
        results = check_metrics(gate, CheckInputs(evaluation, ConfidenceLevel(1)))
        if evaluation.rows and all(_would_pass(result, n_test) for result in results):
            return evaluation.candidate
    best = max(measured, key=lambda evaluation: evaluation.accuracy.value, default=None)
    return best.candidate if best else None


def count_comparisons(names: Sequence[str], declared: Collection[str | None]) -> dict[str, int]:
    """Return by candidate the number that its share of the level is one of; the shares sum to 1."""
    first = [name for name in names if name in declared]
    others = len(names) - len(first)
    if not first or not others:
        return dict.fromkeys(names, len(names))
    return {name: 2 * (len(first) if name in first else others) for name in names}


def _would_pass(result: CheckResult, n: int) -> bool:
    """Return True if the result would pass with an interval of `n` rows: a width shrinks with the root of n."""
    found, threshold = result.estimate, result.threshold
    if found is None or threshold is None or not n:
        return result.passed
    by = math.sqrt(found.n / n)
    if result.name.endswith("_at_most"):
        return found.value + by * (found.high - found.value) <= threshold
    return found.value - by * (found.value - found.low) >= threshold
