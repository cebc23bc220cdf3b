"""Maxima of latency and cost, by the worse ends of their intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from smallfirst.base.stats.intervals import mean_interval
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import CheckInputs, ConfidenceLevel, Gate, run_checks
from smallfirst.measuring.verdict import CheckResult

Measured = Callable[..., Evaluation]


def check(candidate: Evaluation, **thresholds: Any) -> CheckResult:
    (result,) = run_checks(Gate(**thresholds), CheckInputs(candidate, ConfidenceLevel(1)))
    return result


def with_costs(evaluation: Evaluation, usd_per_1k: Any) -> Evaluation:
    rows = zip(evaluation.rows, usd_per_1k, strict=True)
    return evaluation.model_copy(
        update={"rows": tuple(row.model_copy(update={"cost_usd": float(cost) / 1000}) for row, cost in rows)}
    )


def test_latency_is_compared_by_the_upper_order_statistic(measured: Measured) -> None:
    candidate = measured([True] * 10, probes_ms=tuple(float(i) for i in range(1, 101)))
    # P(at most 98 of 100 are below the p95) = 0.963 and at most 99: 0.994; so the 100th value is the upper end.
    result = check(candidate, p95_ms_at_most=100)
    assert (result.passed, result.measured) == (True, "95.0 [90.0, 100.0] ms n=100")
    assert check(candidate, p95_ms_at_most=99.5).advice == "so few rows cannot tell: more are needed"
    assert check(candidate, p95_ms_at_most=60).advice == "a smaller model or a shorter prompt would help"
    # P(at most 39 of 100 below the median) = 0.018, at most 59: 0.972, at most 60: 0.982.
    assert check(candidate, p50_ms_at_most=61).measured == "50.5 [40.0, 61.0] ms n=100"


def test_too_few_requests_show_no_upper_end_of_a_p95(measured: Measured) -> None:
    result = check(measured([True] * 10, probes_ms=(5.0,) * 71), p95_ms_at_most=100)
    assert (result.passed, result.advice) == (False, "71 requests show no upper end; ask at least 72")
    assert check(measured([True] * 10, probes_ms=(5.0,) * 72), p95_ms_at_most=100).passed


@pytest.mark.parametrize("n", [40, 300])
def test_a_p95_ten_percent_over_its_maximum_seldom_passes(measured: Measured, n: int) -> None:
    draw, passed, draws = np.random.default_rng(3), 0, 300
    for _ in range(draws):  # lognormal, p95 = 110 ms; the plain p95 of 40 requests is below 100 in 0.43 of the draws
        latencies = np.exp(np.log(110) + 0.5 * (draw.standard_normal(n) - 1.6449))
        passed += check(measured([True], probes_ms=tuple(latencies.tolist())), p95_ms_at_most=100).passed
    assert passed / draws <= 0.025


def test_the_mean_cost_is_compared_by_its_upper_end(measured: Measured) -> None:
    candidate = measured([True] * 10)
    assert check(candidate, cost_usd_per_1k_at_most=0.01).measured == "$0.0100 [0.0100, 0.0100] per 1,000 n=10"
    assert check(candidate, cost_usd_per_1k_at_most=0.01).passed
    assert not check(candidate, cost_usd_per_1k_at_most=0.009).passed
    costs = np.random.default_rng(0).exponential(1.0, 100)
    uneven, found = with_costs(measured([True] * 100), costs), mean_interval(costs)
    assert found.low < costs.mean() < found.high
    assert not check(uneven, cost_usd_per_1k_at_most=found.high - 0.001).passed
    assert check(uneven, cost_usd_per_1k_at_most=found.high + 0.001).passed


def test_what_was_not_measured_is_under_no_maximum(measured: Measured) -> None:
    assert not check(measured([]), p50_ms_at_most=1000.0).passed
    assert not check(measured([]), cost_usd_per_1k_at_most=1000.0).passed
    for value in (float("nan"), float("inf")):
        assert not check(measured([True], probes_ms=(value,) * 100), p50_ms_at_most=1000.0).passed
        assert not check(measured([True] * 9, cost_usd_per_1k=value), cost_usd_per_1k_at_most=1000.0).passed
