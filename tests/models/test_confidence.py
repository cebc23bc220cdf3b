"""Confidence of a written answer from its tokens, by hand."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallfirst.models.confidence import MIN_LOG_PROBABILITY, Calibration, IsotonicCurve, token_features

CALM = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no reason to fail."""
NATS = st.lists(st.floats(-200, 0), max_size=30)
FITTED = Calibration(
    weights=(1.0, 0.5, 0.25, -0.125),
    centres=(-2.0, -0.5, -1.0, 4.0),
    scales=(2.0, 0.5, 1.0, 2.0),
    steps=IsotonicCurve(x=(-1.0, 0.0, 1.0), y=(0.2, 0.6, 0.9)),
    n_rows=40,
)


def test_an_empty_answer_counts_as_one_impossible_token() -> None:
    assert token_features([-math.inf, 0.0]) == (MIN_LOG_PROBABILITY, MIN_LOG_PROBABILITY / 2, MIN_LOG_PROBABILITY, 2.0)
    assert token_features([]) == (MIN_LOG_PROBABILITY, MIN_LOG_PROBABILITY, MIN_LOG_PROBABILITY, 0.0)


@CALM
@given(NATS)
def test_unfitted_it_is_the_probability_of_the_whole_answer(nats: list[float]) -> None:
    found = Calibration().confidence(nats)
    expected = math.prod(math.exp(value) for value in nats) if nats else 0.0
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-40)
    assert 0 <= found <= 1


def test_a_fitted_confidence_by_hand() -> None:
    # Sum -3, mean -1.5, lowest -2, two tokens: -0.5 - 1 - 0.25 + 0.125 = -1.625, below the first knot.
    nats = [-1.0, -2.0]
    rising = 0.5 + 0.5 * -1.625 / 2.625
    assert FITTED.confidence(nats) == pytest.approx(0.999 * 0.2 + 0.001 * rising)
    # At the centres the score is 0, at the middle knot.
    assert FITTED.steps.at(0.0) == pytest.approx(0.999 * 0.6 + 0.001 * 0.5)


def test_rows_on_a_flat_step_are_still_in_order() -> None:
    flat = IsotonicCurve(x=(0.0, 1.0), y=(0.7, 0.7))
    assert flat.at(0.2) < flat.at(0.4) < flat.at(5.0) < flat.at(50.0)
