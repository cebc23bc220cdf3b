"""Confidence of a written answer from its tokens, by hand."""

from __future__ import annotations

import math

import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallfirst.models.confidence import MIN_LOG_PROBABILITY, TIE_BREAK, Calibration, IsotonicCurve, token_features

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


def test_the_features_are_sum_mean_lowest_and_number() -> None:
    assert Calibration.FEATURES == ("sum", "mean", "lowest", "n_tokens")
    assert token_features([-0.5, -1.5, -0.1]) == pytest.approx((-2.1, -0.7, -1.5, 3.0))


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
    assert FITTED.score((-3.0, -1.5, -2.0, 2.0)) == pytest.approx(-1.625)
    rising = 0.5 + 0.5 * -1.625 / 2.625
    assert FITTED.confidence(nats) == pytest.approx(0.999 * 0.2 + 0.001 * rising)
    # At the centres the score is 0, at the middle knot.
    assert FITTED.steps.at(FITTED.score(FITTED.centres)) == pytest.approx(0.999 * 0.6 + 0.001 * 0.5)


@CALM
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_steps_never_fall_and_stay_between_0_and_1(values: list[float]) -> None:
    found = [FITTED.steps.at(value) for value in sorted(values)]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= 1


def test_between_knots_the_line_is_straight_but_for_a_thousandth() -> None:
    for value in np.linspace(-3, 3, 25).tolist():
        plain = float(np.interp(value, FITTED.steps.x, FITTED.steps.y))
        assert abs(FITTED.steps.at(value) - plain) <= TIE_BREAK


def test_rows_on_a_flat_step_are_still_in_order() -> None:
    flat = IsotonicCurve(x=(0.0, 1.0), y=(0.7, 0.7))
    assert flat.at(0.2) < flat.at(0.4) < flat.at(5.0) < flat.at(50.0)


def test_without_knots_nothing_is_changed() -> None:
    assert IsotonicCurve().at(0.37) == 0.37


def test_a_calibration_comes_back_from_json() -> None:
    assert Calibration.model_validate_json(FITTED.model_dump_json()) == FITTED


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        ((0.0, 1.0), (0.5,), "equally long"),
        ((1.0, 0.0), (0.1, 0.2), "never fall"),
        ((0.0, 1.0), (0.2, 0.1), "never fall"),
        ((0.0, 1.0), (0.2, 1.1), r"in \[0, 1\]"),
    ],
)
def test_steps_that_do_not_rise_are_refused(x: tuple[float, ...], y: tuple[float, ...], why: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=why):
        IsotonicCurve(x=x, y=y)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"weights": (1.0,)}, "weights must hold one number for each of sum, mean, lowest, n_tokens"),
        ({"scales": ()}, "scales must hold"),
        ({"scales": (1.0, 0.0, 1.0, 1.0)}, "scales must be above 0"),
        ({"steps": IsotonicCurve()}, "both or neither"),
        ({"weights": (), "centres": (), "scales": ()}, "both or neither"),
    ],
)
def test_a_calibration_fitted_by_half_is_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=why):
        Calibration(**{**dict(FITTED), **change})
