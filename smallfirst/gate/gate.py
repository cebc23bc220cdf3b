"""Gate: what a candidate must show before it may go live.

A threshold is met when the worse end of the interval reaches it. To add a check, write a module with a record of its
thresholds, a base of `Gate`, and a function that yields results, listed in `CHECKS`.

The order in which plans are confirmed on test rows is fixed on selection rows, with each plan's share of the level.
The candidate that costs least a request, as measured on selection rows, of those whose metrics there would meet the
gate with as many rows as the test has comes first, else the most accurate one; one that task.yaml names comes first
instead. The first takes three fifths of the level, the other candidates one fifth, and plans that keep a part of the
requests small the last fifth; the shares sum to 1 (Bonferroni), so the verdicts on test rows hold together whichever
goes live.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from smallfirst.data.quality.leaks import LeakReport
from smallfirst.errors import ConfigError
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckInputs, CheckResult, ConfidenceLevel
from smallfirst.gate.leaks import LeakThresholds, check_leaks
from smallfirst.gate.limits import LimitThresholds, check_limits
from smallfirst.gate.metrics import (
    MetricThresholds,
    PerClassThresholds,
    check_metrics,
    check_per_class,
)
from smallfirst.gate.paired import PairedThresholds, check_paired
from smallfirst.gate.routed import RoutedThresholds
from smallfirst.gate.verdict import Verdict

CHECKS: tuple[Callable[[Any, CheckInputs], Iterator[CheckResult]], ...] = (
    check_metrics,
    check_per_class,
    check_paired,
    check_limits,
    check_leaks,
)
"""All checks, in the order of their results."""
ALIKE = 1.25
"""Costs that differ by no more than this factor count as equal: measured again, they differ by as much."""
FIRST, OTHERS = 0.6, 0.2
"""Shares of the level: of the first candidate, and of all others together."""
PLANS = (0.1, 0.05, 0.05)
"""Shares of the plans that keep a part small, in the order in which they are tried."""


class Gate(MetricThresholds, PerClassThresholds, PairedThresholds, LimitThresholds, LeakThresholds):
    """Thresholds declared in task.yaml before anything is measured; one left out is not checked."""

    routed: RoutedThresholds = RoutedThresholds()
    """Thresholds for a plan that keeps a part of the requests small, where no candidate meets those above alone."""

    @property
    def has_thresholds(self) -> bool:
        """True if there is anything to check: fields named `…_at_least`, `…_at_most` or `…_by` are thresholds."""
        suffixes = ("_at_least", "_at_most", "_by")
        return any(value not in (None, {}) for name, value in self if name.endswith(suffixes))

    def check(
        self,
        candidate: Evaluation,
        *,
        large: Evaluation | None,
        comparisons_made: float = 1,
        leaks: LeakReport | None = None,
        clean: Evaluation | None = None,
    ) -> Verdict:
        """Return the verdict on `candidate`, one result a threshold. Raise ConfigError if none is declared.

        Spend one of `comparisons_made` parts of the level (`count_comparisons`). `large` may cover some rows.
        Where `leaks` found test rows that repeat a training row, `clean` is the candidate on the others
        (`restrict_to_rows`): the thresholds are about these.
        """
        if comparisons_made < 1:
            raise ConfigError(f"comparisons_made must be at least 1, got {comparisons_made}")
        if not self.has_thresholds:
            raise ConfigError(
                "the gate declares no threshold, so anything would pass",
                hint="declare at least one in task.yaml, for example  gate: {accuracy_at_least: 0.9}",
            )
        judged, level = candidate if clean is None else clean, ConfidenceLevel(comparisons_made)
        inputs = CheckInputs(judged, level, large, leaks, with_copies=candidate)
        results = tuple(result for run in CHECKS for result in run(self, inputs))
        return Verdict(
            candidate=candidate.candidate,
            checks=results,
            passed=all(result.passed for result in results),
            evaluation_fingerprint=candidate.fingerprint(),
        )


def cheapest_first(measured: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the evaluations by the mean cost of a request, the cheapest first; those of equal cost as they were."""
    ordered: list[Evaluation] = []
    rest = list(measured)
    while rest:
        most = ALIKE * min(evaluation.cost_usd_per_1k for evaluation in rest)
        ordered += [evaluation for evaluation in rest if evaluation.cost_usd_per_1k <= most]
        rest = [evaluation for evaluation in rest if evaluation.cost_usd_per_1k > most]
    return ordered


def choose_candidate(gate: MetricThresholds, measured: Sequence[Evaluation], n_test: int) -> str | None:
    """Return the candidate to confirm on `n_test` rows; None without evaluations on selection rows, cheapest first."""
    for evaluation in measured:
        results = check_metrics(gate, CheckInputs(evaluation, ConfidenceLevel(1)))
        if evaluation.rows and all(_would_pass(result, n_test) for result in results):
            return evaluation.candidate
    best = max(measured, key=lambda evaluation: evaluation.accuracy.value, default=None)
    return best.candidate if best else None


def count_comparisons(names: Sequence[str], first: str | None) -> dict[str, float]:
    """Return by candidate the number that its share of the level is one of; with PLANS the shares sum to at most 1.

    Without a `first` among `names` all share alike.
    """
    others = [name for name in names if name != first]
    if first is None or first not in names or not others:
        return {name: len(names) / (FIRST + OTHERS) for name in names}
    return {first: 1 / FIRST} | {name: len(others) / OTHERS for name in others}


def _would_pass(result: CheckResult, n: int) -> bool:
    """Return True if the result would pass with an interval of `n` rows: a width shrinks with the root of n."""
    found, threshold = result.estimate, result.threshold
    if found is None or threshold is None or not n:
        return result.passed
    by = math.sqrt(found.n / n)
    if result.name.endswith("_at_most"):
        return found.value + by * (found.high - found.value) <= threshold
    return found.value - by * (found.value - found.low) >= threshold
