"""One temperature found again from simulated answers, and the error that is left, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from smallfirst.evaluation.calibration import expected_calibration_error, fit_temperature
from smallfirst.models.scored import tempered


def simulated(temperature: float, *, n: int = 12_000, labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of a model `temperature` times too sure, and gold labels drawn as it should have said."""
    draw = np.random.default_rng(3)
    logits = draw.normal(0, 2, (n, labels))
    said = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    truth = tempered(said, temperature)
    gold = (truth.cumsum(axis=1) > draw.random((n, 1))).argmax(axis=1)
    return said, gold


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8, 2.5])
def test_the_temperature_that_was_applied_is_found_again(temperature: float) -> None:
    assert fit_temperature(*simulated(temperature)) == pytest.approx(temperature, abs=0.1)


def test_the_fitted_temperature_leaves_less_calibration_error_and_the_same_answers() -> None:
    said, gold = simulated(2.0)
    right = said.argmax(axis=1) == gold
    before, after = np.exp(said), tempered(said, fit_temperature(said, gold))
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    assert expected_calibration_error(before.max(axis=1), right) > 0.1
    assert expected_calibration_error(after.max(axis=1), right) < 0.02


def test_rows_that_are_all_right_or_all_wrong_meet_the_ends_of_the_range() -> None:
    said = np.log(np.array([[0.7, 0.3]] * 20))
    assert fit_temperature(said, np.zeros(20, dtype=int)) == pytest.approx(0.25, abs=0.01)
    assert fit_temperature(said, np.ones(20, dtype=int)) == pytest.approx(8.0, abs=0.01)


def test_without_rows_nothing_is_changed() -> None:
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1.0
    assert expected_calibration_error([], []) == 0.0


def test_the_calibration_error_is_the_weighted_gap_of_bins_of_equal_count() -> None:
    # By confidence: {0.1, 0.3} mean 0.2, all right; {0.8, 1.0} mean 0.9, half right. Gaps 0.8 and 0.4.
    found = expected_calibration_error([1.0, 0.1, 0.8, 0.3], [False, True, True, True], bins=2)
    assert found == pytest.approx((2 * 0.8 + 2 * 0.4) / 4)
    # Five rows in two bins: three and two rows. {0.1, 0.2, 0.3} mean 0.2, one right; {0.8, 0.9} mean 0.85, one right.
    found = expected_calibration_error([0.1, 0.2, 0.3, 0.8, 0.9], [False, False, True, True, False], bins=2)
    assert found == pytest.approx((3 * (1 / 3 - 0.2) + 2 * (0.85 - 0.5)) / 5)


def test_more_bins_than_rows_are_no_harm() -> None:
    assert expected_calibration_error([0.9], [True]) == pytest.approx(0.1)
