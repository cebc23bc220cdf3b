"""Thresholds about a plan as a whole, on test rows that its Router answered."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import CheckInputs, ConfidenceLevel, RoutedThresholds, run_checks
from smallfirst.measuring.verdict import CheckResult

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
    assert sum(plan.stays_small) == 80
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


@pytest.mark.parametrize(("ours", "passed"), [(0.01, True), (0.0099, True), (0.0101, False), (float("nan"), False)])
def test_the_bill_is_a_share_of_the_large_models_on_the_same_rows(
    measured: Measured, ours: float, passed: bool
) -> None:
    plan, large = measured([True] * 10, cost_usd_per_1k=ours), measured([True] * 8, cost_usd_per_1k=0.1)
    (cost,) = found(plan, large, cost_at_most=0.1)
    assert cost.passed is passed
    if ours == 0.01:
        assert cost.measured == "0.100 [0.100, 0.100] n=8"
    (unpaired,) = found(plan, measured([True] * 3, keys=["x", "y", "z"], cost_usd_per_1k=1.0), cost_at_most=9.0)
    assert not unpaired.passed


def test_a_bill_of_uneven_costs_is_shown_from_the_high_end_on(measured: Measured) -> None:
    draw = np.random.default_rng(5)
    plan, large = measured([True] * 200), measured([True] * 200, cost_usd_per_1k=10.0)
    usd = draw.exponential(0.001, 200), draw.exponential(0.01, 200)
    plan, large = (
        one.model_copy(
            update={"rows": tuple(r.model_copy(update={"cost_usd": u}) for r, u in zip(one.rows, each, strict=True))}
        )
        for one, each in zip((plan, large), usd, strict=True)
    )
    (cost,) = found(plan, large, cost_at_most=0.5)
    assert cost.estimate
    assert cost.estimate.value == pytest.approx(usd[0].mean() / usd[1].mean())
    assert 0.01 < cost.estimate.high - cost.estimate.value < 0.04
    (missed,) = found(plan, large, cost_at_most=cost.estimate.high - 0.001)
    assert not missed.passed


def test_accuracy_over_all_requests_is_checked_alone_and_against_the_large_model(measured: Measured) -> None:
    large, plan = measured([True] * 100, candidate="large", cost_usd_per_1k=0.0), routed(measured, 80, 20, wrong=10)
    bars = {"cost_at_most": None, "accuracy_at_least": 0.8, "not_worse_than_large_by": 0.05}
    accuracy, paired = found(plan, large, **bars)
    assert (accuracy.name, accuracy.passed) == ("accuracy_at_least", True)  # 90 of 100: from 0.826
    assert (paired.name, paired.passed) == ("not_worse_than_large_by", False)  # ten worse
    slow, *_ = found(plan, large, cost_at_most=None, p95_ms_at_most=1e-9)
    assert (slow.name, slow.passed) == ("p95_ms_at_most", False)
