"""What confidence parts: curves and areas by hand, against scikit-learn, and as laws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.calibration import auroc, risk_coverage_curve

# The surest first: right, wrong, right, right, wrong; the order of rows is another.
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


def test_equal_confidences_are_one_point() -> None:
    curve = risk_coverage_curve([0.9, 0.5, 0.5, 0.5], [True, False, True, True])
    assert [(point.coverage, point.error.value) for point in curve] == [(0.25, 0.0), (1.0, 0.25)]


def test_rows_without_confidence_are_never_kept_but_counted() -> None:
    curve = risk_coverage_curve([None, 0.9, None, 0.8], [True, True, False, False])
    assert [(point.coverage, point.confidence) for point in curve] == [(0.25, 0.9), (0.5, 0.8)]
    assert risk_coverage_curve([None, None], [True, False]) == ()
    assert risk_coverage_curve([], []) == ()


def test_few_points_are_spread_over_the_rows() -> None:
    curve = risk_coverage_curve([i / 100 for i in range(100)], [True] * 100, n_points=4)
    assert [point.coverage for point in curve] == [0.25, 0.5, 0.75, 1.0]


@CALM
@given(ROWS, st.integers(1, 60))
def test_every_point_is_what_its_threshold_keeps(rows: list[tuple[float | None, bool]], n_points: int) -> None:
    for point in risk_coverage_curve(*parted(rows), n_points=n_points):
        kept = [right for said, right in rows if said is not None and said >= point.confidence]
        assert point.coverage == pytest.approx(len(kept) / len(rows))
        assert point.error == wilson(len(kept) - sum(kept), len(kept))


@settings(max_examples=15, deadline=None)  # each makes a thousand resamples
@given(ROWS)
def test_auroc_agrees_with_scikit_learn(rows: list[tuple[float | None, bool]]) -> None:
    said, right = parted(rows)
    found = auroc(said, right)
    if all(right) or not any(right):
        assert found is None
        return
    assert found is not None
    reference = roc_auc_score(right, [-1.0 if value is None else value for value in said])
    assert found.value == pytest.approx(reference)
    assert 0 <= found.low <= found.high <= 1


def test_auroc_of_no_rows_is_none() -> None:
    assert auroc([], []) is None


@pytest.mark.parametrize("measure", [risk_coverage_curve, auroc])
def test_every_confidence_needs_its_outcome(measure: Callable[[list[float], list[bool]], object]) -> None:
    with pytest.raises(ValueError, match="differ in number: 1 and 2"):
        measure([0.5], [True, True])
