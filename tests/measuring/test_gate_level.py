"""Confidence levels, and the advice that tells three reasons for a failed check apart."""

from __future__ import annotations

import math

import pytest
from scipy.stats import norm

from smallfirst.base.stats.intervals import Estimate
from smallfirst.measuring.gate import ConfidenceLevel, Requirement


def minimum(threshold: float) -> Requirement:
    return Requirement("accuracy_at_least", threshold, "accuracy")


def test_the_level_is_shared_among_candidates_and_parts() -> None:
    level = ConfidenceLevel(5, parts=10)
    assert level.confidence == pytest.approx(0.999)
    assert level.z == pytest.approx(3.2905, abs=1e-4)  # the normal table: 0.9995 at 3.2905
    assert level.note == " (99.9 % interval: plans and 10 parts share the level)"
    assert ConfidenceLevel(1).note == ""


def test_a_stored_interval_is_widened_by_the_ratio_of_the_quantiles() -> None:
    stored = Estimate(value=0.8, low=0.7, high=0.95, n=50)
    ratio = norm.ppf(1 - 0.025 / 5) / norm.ppf(0.975)
    wide = ConfidenceLevel(5).widen(stored)
    assert (wide.low, wide.high) == pytest.approx((0.8 - 0.1 * ratio, 0.8 + 0.15 * ratio))
    assert ConfidenceLevel(1).widen(stored).low == pytest.approx(0.7)


def test_widening_goes_below_zero_only_for_what_was_there_before() -> None:
    near_zero = Estimate(value=0.05, low=0.01, high=0.2, n=20)
    assert ConfidenceLevel(20).widen(near_zero).low == 0.0
    kappa = Estimate(value=0.1, low=-0.2, high=0.4, n=20)
    assert ConfidenceLevel(20).widen(kappa).low < -0.2


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        (Estimate(value=0.0, low=0.0, high=1.0, n=0), "no row was measured"),
        (Estimate(value=0.79, low=0.7, high=0.85, n=48), "so few rows cannot tell: more are needed"),
        (Estimate(value=0.8, low=0.7, high=0.85, n=48), "so few rows cannot tell: more are needed"),
        (
            Estimate(value=0.6, low=0.5, high=0.7, n=48),
            "more test rows are unlikely to show it (0 %): more training rows or a better model may",
        ),
        (
            Estimate(value=math.nan, low=math.nan, high=1.0, n=48),
            "the value is not a number: fix the scorer and evaluate again",
        ),
    ],
)
def test_advice_names_the_reason(found: Estimate, advice: str) -> None:
    result = minimum(0.8).check(found, ConfidenceLevel(1))
    assert (result.passed, result.advice) == (False, advice)


def test_the_lower_end_alone_decides() -> None:
    found = Estimate(value=0.9, low=0.8, high=0.95, n=50)
    assert minimum(0.8).check(found, ConfidenceLevel(1)).passed
    assert not minimum(0.8000001).check(found, ConfidenceLevel(1)).passed
