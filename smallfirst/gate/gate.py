"""Gate: what a candidate must show before it may go live.

A threshold is met when the worse end of the interval reaches it. To add a check, write a module with a record of its
thresholds, a base of `Gate`, and a function that yields results, listed in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from smallfirst.data.quality.leaks import LeakReport
from smallfirst.errors import ConfigError
from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckInputs, CheckResult, ConfidenceLevel
from smallfirst.gate.leaks import LeakThresholds, check_leaks
from smallfirst.gate.limits import LimitThresholds, RoutedThresholds, check_limits
from smallfirst.gate.metrics import (
    MetricThresholds,
    PairedThresholds,
    PerClassThresholds,
    check_metrics,
    check_paired,
    check_per_class,
)
from smallfirst.gate.verdict import Verdict

CHECKS: tuple[Callable[[Any, CheckInputs], Iterator[CheckResult]], ...] = (
    check_metrics,
    check_per_class,
    check_paired,
    check_limits,
    check_leaks,
)
"""All checks, in the order of their results."""


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

        Spend one of `comparisons_made` parts of the level (`choice.level_shares`). `large` may cover some rows.
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
