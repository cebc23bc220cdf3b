"""Tables and curves on eight rows, counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smallfirst.report.data import PromiseHeld, ReportData
from smallfirst.report.measures import (
    Grades,
    answers_are_labels,
    confused_pairs,
    confusion,
    grades,
    reliability,
    risks,
    surest_errors,
)
from smallfirst.stats.intervals import wilson


def test_every_answer_is_in_the_confusion_once(make_report: Callable[..., ReportData]) -> None:
    small = make_report().evaluation("small")
    assert small is not None
    found = confusion(small)
    assert found is not None
    # Four card rows, one of them answered fee; four fee rows, all right.
    assert (found.labels, found.said, found.counts) == (("card", "fee"), ("card", "fee"), ((3, 1), (0, 4)))
    silent = small.rows[0].model_copy(update={"answer": None, "correct": False})
    found = confusion(small.model_copy(update={"rows": (silent, *small.rows[1:])}))
    assert found is not None
    assert found.counts == ((2, 1, 1), (0, 4, 0))
    assert confusion(small, most=1) is None


def test_grades_count_every_row_once(make_report: Callable[..., ReportData]) -> None:
    small = make_report().evaluation("small")
    assert small is not None
    assert grades(small) is None
    changed = [
        row.model_copy(update={"score": score, "answer": None if score < 0 else row.answer})
        for row, score in zip(small.rows, (1, 1, 1, 0.5, 0.2, 0, -1, 0), strict=True)
    ]
    rows = tuple(row.model_copy(update={"score": max(0.0, row.score)}) for row in changed)
    assert grades(small.model_copy(update={"rows": rows})) == Grades(n_full=3, n_part=2, n_none=2, n_silent=1)


def test_a_confused_pair_counts_both_directions(make_report: Callable[..., ReportData]) -> None:
    small = make_report().evaluation("small")
    assert small is not None
    rows = list(small.rows)
    for i in (0, 4):
        other = "fee" if rows[i].gold == "card" else "card"
        rows[i] = rows[i].model_copy(update={"answer": other, "correct": False})
    (pair,) = confused_pairs(small.model_copy(update={"rows": tuple(rows)}))
    assert (pair.gold, pair.said, pair.count, pair.reverse) == ("card", "fee", 2, 1)
    assert (pair.share, pair.n_gold) == (0.5, 4)


def test_ece_is_the_mean_gap_weighted_by_rows(make_report: Callable[..., ReportData]) -> None:
    small = make_report().evaluation("small")
    assert small is not None
    found = reliability(small, n_bins=2)
    assert found is not None
    # Least sure half: .6 (wrong), .7, .85, .9: mean .7625, accuracy .75.
    # The rest: mean .9725, all right.
    assert [b.confidence for b in found.bins] == pytest.approx([0.7625, 0.9725])
    assert [b.accuracy for b in found.bins] == [wilson(3, 4), wilson(4, 4)]
    assert found.ece == pytest.approx((0.0125 + 0.0275) / 2)
    assert (found.n, found.n_without) == (8, 0)


def test_a_model_without_confidence_has_no_curves(make_report: Callable[..., ReportData]) -> None:
    large = make_report().evaluation("large")
    assert large is not None
    assert reliability(large) is None
    assert risks(large) == ()


def test_risk_ends_at_the_error_of_all_answers(make_report: Callable[..., ReportData]) -> None:
    small = make_report().evaluation("small")
    assert small is not None
    curve = risks(small)
    assert [p.error.value for p in curve] == [0, 0, 0, 0, 0, 0, 0, 0.125]
    assert (curve[-1].coverage, curve[-1].confidence) == (1.0, 0.6)


def test_answers_that_never_repeat_are_no_labels(make_report: Callable[..., ReportData]) -> None:
    small = make_report().evaluation("small")
    assert small is not None
    assert answers_are_labels(small)
    texts = tuple(r.model_copy(update={"gold": f"text {i}"}) for i, r in enumerate(small.rows))
    free = small.model_copy(update={"rows": texts})
    assert not answers_are_labels(free)
    assert [row.key for row in surest_errors(small)] == ["row3"]


def test_the_promise_is_counted_on_certified_rows_only(
    make_report: Callable[..., ReportData],
) -> None:
    routed = make_report().evaluation("routed")
    assert routed is not None
    held = PromiseHeld.on(routed)
    assert (held.errors_kept, held.n_kept, held.error.low) == (0, 6, 0.0)
    # With no error in n rows the exact two-sided 95 % bound is 1 - 0.025^(1/n).
    assert held.error.high == pytest.approx(1 - 0.025 ** (1 / 6))
    # And with n errors in n rows the lower one is 0.025^(1/n).
    assert PromiseHeld.count(6, 6).error.low == pytest.approx(0.025 ** (1 / 6))
