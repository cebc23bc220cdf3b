"""Thresholds about a plan as a whole, on test rows that its Router answered."""

from __future__ import annotations

from collections.abc import Callable

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckResult, ConfidenceLevel
from smallfirst.gate.gate import CheckInputs, RoutedThresholds, run_checks, stays_small

Measured = Callable[..., Evaluation]


def routed(measured: Measured, n_small: int, n_large: int, *, wrong: int = 0, draft: float = 0.01) -> Evaluation:
    """The first rows stay small and cost `draft` USD per 1,000; the others pay for the draft and 1 USD per 1,000."""
    n = n_small + n_large
    plain = measured([i >= wrong for i in range(n)], candidate="routed")
    rows = [
        row.model_copy(
            update={
                "stage": "small" if i < n_small else "large",
                "cost_usd": (draft + (0 if i < n_small else 1)) / 1000,
            }
        )
        for i, row in enumerate(plain.rows)
    ]
    return plain.model_copy(update={"rows": tuple(rows)})


def found(evaluation: Evaluation, large: Evaluation | None, **bars: float | None) -> list[CheckResult]:
    inputs = CheckInputs(evaluation, ConfidenceLevel(1), large)
    return list(run_checks(RoutedThresholds(**bars), inputs))  # type: ignore[arg-type]


def test_the_share_that_stays_small_must_be_shown(measured: Measured) -> None:
    plan = routed(measured, 80, 20)
    assert sum(stays_small(plan)) == 80
    (share,) = found(plan, None, share_small_at_least=0.7)  # Wilson's lower end of 80 of 100 is 0.711
    assert share.passed
    (share,) = found(plan, None, share_small_at_least=0.72)
    assert not share.passed
    assert share.more_rows is not None


def test_by_default_the_plan_must_not_cost_more_than_the_large_model(measured: Measured) -> None:
    large = measured([True] * 100, candidate="large", cost_usd_per_1k=1.0)
    (cost,) = found(routed(measured, 80, 20), large)
    assert (cost.name, cost.passed, cost.threshold) == ("cost_at_most", True, 1.0)
    (cost,) = found(routed(measured, 1, 99, draft=0.5), large)  # drafts that are hardly ever used
    assert not cost.passed
    assert found(routed(measured, 1, 99, draft=0.5), None) == []  # nothing to compare with
    assert found(routed(measured, 1, 99), measured([True] * 100, candidate="large", cost_usd_per_1k=0.0)) == []


def test_accuracy_over_all_requests_is_checked_alone_and_against_the_large_model(measured: Measured) -> None:
    large, plan = measured([True] * 100, candidate="large", cost_usd_per_1k=0.0), routed(measured, 80, 20, wrong=10)
    bars = {"cost_at_most": None, "accuracy_at_least": 0.8, "not_worse_than_large_by": 0.05}
    accuracy, paired = found(plan, large, **bars)
    assert (accuracy.name, accuracy.passed) == ("accuracy_at_least", True)  # 90 of 100: from 0.826
    assert (paired.name, paired.passed) == ("not_worse_than_large_by", False)  # ten worse
    slow, *_ = found(plan, large, cost_at_most=None, p95_ms_at_most=1e-9)
    assert (slow.name, slow.passed) == ("p95_ms_at_most", False)
