"""Confidence: temperatures, steps and token features that calibrate it, and what it parts; by hand and as laws."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.calibration import (
    MIN_ROWS,
    equal_count_bins,
    expected_calibration_error,
    fit_calibration,
    fit_isotonic,
    fit_temperature,
    risk_coverage_curve,
)
from smallfirst.models.confidence import TIE_BREAK, Calibration, IsotonicCurve

# The surest first: right, wrong, right, right, wrong; the order of rows is another.


def simulated(temperature: float, *, n: int = 12_000, labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities of a model `temperature` times too confident, and gold labels drawn from the truth."""
    draw = np.random.default_rng(3)
    logits = draw.normal(0, 2, (n, labels))
    confidences = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    truth = special.softmax(confidences / temperature, axis=1)
    gold = (truth.cumsum(axis=1) > draw.random((n, 1))).argmax(axis=1)
    return confidences, gold


@pytest.mark.parametrize("temperature", [0.7, 2.5])
def test_the_temperature_that_was_applied_is_found_again(temperature: float) -> None:
    assert fit_temperature(*simulated(temperature)) == pytest.approx(temperature, abs=0.1)


def test_the_fitted_temperature_leaves_less_calibration_error_and_the_same_answers() -> None:
    confidences, gold = simulated(2.0)
    right = confidences.argmax(axis=1) == gold
    before, after = np.exp(confidences), special.softmax(confidences / fit_temperature(confidences, gold), axis=1)
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    assert expected_calibration_error(before.max(axis=1), right) > 0.1
    assert expected_calibration_error(after.max(axis=1), right) < 0.02


def test_rows_that_are_all_right_or_all_wrong_meet_the_ends_of_the_range() -> None:
    confidences = np.log(np.array([[0.7, 0.3]] * 20))
    assert fit_temperature(confidences, np.zeros(20, dtype=int)) == pytest.approx(0.25, abs=0.01)
    assert fit_temperature(confidences, np.ones(20, dtype=int)) == pytest.approx(8.0, abs=0.01)


def answers(n: int, *, seed: int = 1) -> tuple[list[list[float]], list[bool]]:
    """Token log-probabilities of written answers whose lowest token alone says how likely they are right.

    Every other token is a filler whose log-probability says nothing, so a long answer's own probability is low.
    """
    draw = np.random.default_rng(seed)
    chance = draw.uniform(0.05, 0.99, n)
    tokens = [[float(np.log(p)) - 0.5, *(-0.4 * draw.random(draw.integers(1, 40))).tolist()] for p in chance]
    return tokens, (draw.random(n) < chance).tolist()


def test_steps_are_scikit_learns_with_one_row_against_each_end() -> None:
    draw = np.random.default_rng(2)
    confidences = draw.random(200).round(2)
    right = draw.random(200) < confidences**2
    steps = fit_isotonic(confidences.tolist(), right.tolist())
    reference = IsotonicRegression(out_of_bounds="clip").fit(
        np.concatenate([[-1.0], confidences, [2.0]]), np.concatenate([[1.0], right, [0.0]])
    )
    for value in np.unique(confidences).tolist():
        assert steps.at(value) == pytest.approx(float(reference.predict([value])[0]), abs=TIE_BREAK)


def test_no_step_claims_certainty() -> None:
    confidences = [i / 100 for i in range(100)]
    steps = fit_isotonic(confidences, [i >= 40 for i in range(100)])
    # 60 right ones and the wrong one that was added; 40 wrong ones and the right one that was added.
    assert (steps.y[0], steps.y[-1]) == pytest.approx((1 / 41, 60 / 61))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-100, 1), st.booleans()), min_size=MIN_ROWS, max_size=60),
    st.lists(st.floats(-150, 50), min_size=2, max_size=10),
)
def test_steps_keep_the_order_and_leave_the_mean_right(rows: list[tuple[float, bool]], values: list[float]) -> None:
    confidences, right = [s for s, _ in rows], [r for _, r in rows]
    steps = fit_isotonic(confidences, right)
    if all(right) or not any(right):
        assert steps == IsotonicCurve()
        return
    found = [steps.at(value) for value in sorted(values)]
    assert min(np.diff(found)) >= -1e-12  # equal ones may differ by rounding
    assert 0 <= found[0] <= found[-1] <= 1
    # Isotonic regression keeps the mean, here with the two rows that were added.
    assert np.mean([steps.at(s) for s in confidences]) == pytest.approx(
        np.mean(right), abs=2 / len(confidences) + TIE_BREAK
    )


def test_a_calibration_ranks_answers_better_than_their_own_probability_and_is_honest() -> None:
    tokens, right = answers(600)
    held_out, held_out_right = answers(2000, seed=9)
    fitted = fit_calibration(tokens, right)
    before = [Calibration().confidence(answer) for answer in held_out]
    after = [fitted.confidence(answer) for answer in held_out]
    assert fitted.n_rows == 600
    assert roc_auc_score(held_out_right, after) > roc_auc_score(held_out_right, before) + 0.1
    assert expected_calibration_error(before, held_out_right) > 0.3
    assert expected_calibration_error(after, held_out_right) < 0.06
    assert brier_score_loss(held_out_right, after) < brier_score_loss(held_out_right, before) - 0.1


@pytest.mark.parametrize(("n", "kinds"), [(MIN_ROWS - 1, 2), (MIN_ROWS, 1), (500, 1)])
def test_too_few_rows_and_rows_of_one_kind_leave_it_unfitted(n: int, kinds: int) -> None:
    tokens, _ = answers(n)
    for first in (True, False):
        right = [first if kinds == 1 else i % 2 == 0 for i in range(n)]
        assert fit_calibration(tokens, right) == Calibration()
        assert fit_isotonic([i / n for i in range(n)], right) == IsotonicCurve()


def test_the_calibration_error_is_the_weighted_gap_of_bins_of_equal_count() -> None:
    # By confidence: {0.1, 0.3} mean 0.2, all right; {0.8, 1.0} mean 0.9, half right. Gaps 0.8 and 0.4.
    found = expected_calibration_error([1.0, 0.1, 0.8, 0.3], [False, True, True, True], bins=2)
    assert found == pytest.approx((2 * 0.8 + 2 * 0.4) / 4)
    # Five rows in two bins: three and two rows. {0.1, 0.2, 0.3} mean 0.2, one right; {0.8, 0.9} mean 0.85, one right.
    found = expected_calibration_error([0.1, 0.2, 0.3, 0.8, 0.9], [False, False, True, True, False], bins=2)
    assert found == pytest.approx((3 * (1 / 3 - 0.2) + 2 * (0.85 - 0.5)) / 5)
    assert expected_calibration_error([0.9], [True]) == pytest.approx(0.1)  # more bins than rows do no harm


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_bins_part_all_rows_never_equal_ones_and_the_error_ignores_their_order(
    rows: list[tuple[int, bool]], bins: int, shuffle: Random
) -> None:
    confidences, right = [s / 8 for s, _ in rows], [r for _, r in rows]
    parts = equal_count_bins(confidences, bins)
    assert len(parts) <= bins
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(confidences)))
    ends = [(confidences[part[0]], confidences[part[-1]]) for part in parts]
    assert all(before[1] < after[0] for before, after in pairwise(ends))
    shuffled = rows.copy()
    shuffle.shuffle(shuffled)
    again = expected_calibration_error([s / 8 for s, _ in shuffled], [r for _, r in shuffled], bins=bins)
    assert expected_calibration_error(confidences, right, bins=bins) == pytest.approx(again)


SAID = [0.6, 0.9, 0.5, 0.8, 0.7]
RIGHT = [True, True, False, False, True]

CONFIDENCE = st.one_of(st.none(), st.integers(0, 5).map(lambda i: i / 5))
ROWS = st.lists(st.tuples(CONFIDENCE, st.booleans()), min_size=1, max_size=40)
CALM = settings(max_examples=40, deadline=None)
"""A busy machine is no reason to fail."""


def parted(rows: list[tuple[float | None, bool]]) -> tuple[list[float | None], list[bool]]:
    return [said for said, _ in rows], [right for _, right in rows]


def test_the_curve_by_hand() -> None:
    curve = risk_coverage_curve(SAID, RIGHT)
    assert [point.coverage for point in curve] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [point.error for point in curve] == [wilson(*counts) for counts in ((0, 1), (1, 2), (1, 3), (1, 4), (2, 5))]
    assert [point.confidence for point in curve] == [0.9, 0.8, 0.7, 0.6, 0.5]


def test_rows_without_confidence_are_never_kept_but_counted() -> None:
    curve = risk_coverage_curve([None, 0.9, None, 0.8], [True, True, False, False])
    assert [(point.coverage, point.confidence) for point in curve] == [(0.25, 0.9), (0.5, 0.8)]
    assert risk_coverage_curve([None, None], [True, False]) == ()
    assert risk_coverage_curve([], []) == ()


@CALM
@given(ROWS, st.integers(1, 60))
def test_every_point_is_what_its_threshold_keeps(rows: list[tuple[float | None, bool]], n_points: int) -> None:
    for point in risk_coverage_curve(*parted(rows), n_points=n_points):
        kept = [right for said, right in rows if said is not None and said >= point.confidence]
        assert point.coverage == pytest.approx(len(kept) / len(rows))
        assert point.error == wilson(len(kept) - sum(kept), len(kept))
