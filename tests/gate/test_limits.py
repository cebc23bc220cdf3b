"""Maxima of latency and cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import CheckInputs, ConfidenceLevel
from smallfirst.gate.limits import LimitThresholds, check_limits, check_saving

Measured = Callable[..., Evaluation]


def check(candidate: Evaluation, **thresholds: Any) -> tuple[str, str, bool, str]:
    inputs = CheckInputs(candidate, ConfidenceLevel(1))
    (result,) = check_limits(LimitThresholds(**thresholds), inputs)
    return result.requirement, result.measured, result.passed, result.advice


def test_latency_and_cost_are_compared_as_they_are(measured: Measured) -> None:
    candidate, advice = measured([True] * 10), "a smaller model or a shorter prompt would help"
    assert check(candidate, p95_ms_at_most=9.0) == ("p95 latency at most 9 ms", "9.0 ms n=10", True, "")
    assert check(candidate, p95_ms_at_most=8.9) == ("p95 latency at most 8.9 ms", "9.0 ms n=10", False, advice)
    assert check(candidate, cost_usd_per_1k_at_most=0.01)[2]
    assert check(candidate, cost_usd_per_1k_at_most=0.009) == (
        "cost at most $0.009 per 1,000",
        "$0.0100 per 1,000 n=10",
        False,
        advice,
    )


@pytest.mark.parametrize(("value", "n"), [(0.0, 0), (float("nan"), 50), (float("inf"), 50)])
def test_what_was_not_measured_is_under_no_maximum(measured: Measured, value: float, n: int) -> None:
    assert not check(measured([True] * n, p50_ms=value), p50_ms_at_most=1000.0)[2]


@pytest.mark.parametrize(("ours", "passed"), [(0.01, True), (0.0099, True), (0.0101, False), (float("nan"), False)])
def test_the_saving_is_a_share_of_the_large_models_cost(measured: Measured, ours: float, passed: bool) -> None:
    small, large = measured([True] * 10, cost_usd_per_1k=ours), measured([True] * 8, cost_usd_per_1k=0.1)
    result = check_saving(0.9, small, large)
    assert result.passed is passed
    if ours == 0.01:
        assert result.requirement == "at least 0.900 cheaper than the large model"
        assert result.measured == "0.900 cheaper: $0.0100 against $0.1000 per 1,000 n=8"


def test_nothing_is_cheaper_than_a_large_model_without_a_price(measured: Measured) -> None:
    small = measured([True] * 10)
    free = check_saving(0.0, small, measured([True] * 10, cost_usd_per_1k=0.0))
    assert not free.passed
    assert free.advice.startswith("nothing is cheaper: give the large model its price")
    assert check_saving(0.5, small, None).measured == "the large model was not measured"
    assert not check_saving(0.5, small, measured([], cost_usd_per_1k=1.0)).passed
