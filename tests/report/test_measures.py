"""Tables and curves on eight rows, counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.report.data import ReportData
from smallfirst.report.measures import (
    Grades,
    confused_pairs,
    confusion,
    grades,
    latency_row,
    reliability,
    risks,
    surest_errors,
)
from smallfirst.stats.intervals import wilson


@pytest.fixture
def small(make_report: Callable[..., ReportData]) -> Evaluation:
    """Row 3 is a card question answered fee; the other seven are right."""
    return make_report().evaluations[0]


def with_rows(evaluation: Evaluation, rows: list[EvaluatedRow]) -> Evaluation:
    return evaluation.model_copy(update={"rows": tuple(rows)})


def test_every_answer_is_in_the_confusion_once(small: Evaluation) -> None:
    found = confusion(small)
    assert found is not None
    assert (found.labels, found.said, found.counts) == (("card", "fee"), ("card", "fee"), ((3, 1), (0, 4)))
    silent = small.rows[0].model_copy(update={"answer": None, "correct": False})
    found = confusion(with_rows(small, [silent, *small.rows[1:]]))
    assert found is not None
    assert found.counts == ((2, 1, 1), (0, 4, 0))
    assert confusion(with_rows(small, list(small.rows[:4]))) is None
    many = [row.model_copy(update={"gold": f"label {i}"}) for i, row in enumerate(small.rows * 2)]
    assert confusion(with_rows(small, many)) is None


def test_grades_count_every_row_once(small: Evaluation) -> None:
    assert grades(small) is None
    scores = (1, 1, 1, 0.5, 0.2, 0, 0, 0)
    rows = [row.model_copy(update={"score": score}) for row, score in zip(small.rows, scores, strict=True)]
    rows[6] = rows[6].model_copy(update={"answer": None})
    assert grades(with_rows(small, rows)) == Grades(n_full=3, n_part=2, n_none=2, n_silent=1)


def test_a_confused_pair_counts_both_directions(small: Evaluation) -> None:
    rows = list(small.rows)
    for i, other in ((0, "fee"), (4, "card")):
        rows[i] = rows[i].model_copy(update={"answer": other, "correct": False})
    (pair,) = confused_pairs(with_rows(small, rows), limit=8)
    assert (pair.gold, pair.said, pair.count, pair.reverse) == ("card", "fee", 2, 1)
    assert (pair.share, pair.n_gold) == (0.5, 4)


def test_ece_is_the_mean_gap_weighted_by_rows(small: Evaluation) -> None:
    found = reliability(small, n_bins=2)
    assert found is not None
    # Least confident half: .6 (wrong), .7, .85, .9: mean .7625, accuracy .75.
    # The rest: mean .9725, all right.
    assert [b.confidence for b in found.bins] == pytest.approx([0.7625, 0.9725])
    assert [b.accuracy for b in found.bins] == [wilson(3, 4), wilson(4, 4)]
    assert found.ece == pytest.approx((0.0125 + 0.0275) / 2)
    assert (found.n, found.n_without) == (8, 0)


def test_risk_ends_at_the_error_of_all_answers(small: Evaluation) -> None:
    curve = risks(small)
    assert [p.error.value for p in curve] == [0, 0, 0, 0, 0, 0, 0, 0.125]
    assert (curve[-1].coverage, curve[-1].confidence) == (1.0, 0.6)
    assert [row.key for row in surest_errors(small)] == ["row3"]


def test_a_model_without_confidence_has_no_curves(make_report: Callable[..., ReportData]) -> None:
    large = make_report().evaluations[1]
    assert reliability(large) is None
    assert risks(large) == ()


def test_latency_says_how_it_was_measured(make_report: Callable[..., ReportData]) -> None:
    small, large, routed = make_report().evaluations
    probed = latency_row(small.model_copy(update={"probes_ms": tuple(float(x) for x in range(1, 101))}))
    assert probed.source == "100 requests asked one at a time"
    assert probed.p99_ms == pytest.approx(99.01)
    recorded, unknown = latency_row(large), latency_row(routed)
    assert (recorded.source, recorded.p99_ms) == ("8 requests as reported by the path", None)
    assert (unknown.source, unknown.p99_ms) == ("a few requests asked one at a time", None)
