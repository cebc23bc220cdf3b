"""Figures on eight rows, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from smallfirst.base.stats.intervals import mcnemar, wilson
from smallfirst.path.report.data import ReportData
from smallfirst.path.report.measures import paired_candidates, reliability

Make = Callable[..., ReportData]


def test_p_values_are_corrected_for_all_pairs(make_report: Make, make_evaluation: Callable[..., Any]) -> None:
    linear = make_evaluation("words", "ffffcccc", cost_usd_per_1k=0.001)  # wrong on every row
    reference, pairs = paired_candidates(make_report(evaluations=(linear, *make_report().evaluations)))
    assert (reference, [*pairs]) == ("large", ["words", "small", "routed"])
    # Large alone is right on 7 rows: p = 2 / 2^7; the smallest of three, so three times that.
    assert pairs["words"].comparison.p_value == pytest.approx(2 / 2**7) == mcnemar(0, 7)
    assert pairs["words"].p_holm == pytest.approx(6 / 2**7)


def test_one_candidate_alone_has_nothing_to_be_compared_with(make_report: Make) -> None:
    assert paired_candidates(make_report(evaluations=make_report().evaluations[:1]))[1] == {}


def test_ece_is_the_mean_gap_weighted_by_rows(make_report: Make) -> None:
    small, large, _ = make_report().evaluations
    found = reliability(small, n_bins=2)
    assert found is not None
    # Least confident half: .6 (wrong), .7, .85, .9: mean .7625, accuracy .75.
    # The rest: mean .9725, all right.
    assert [b.confidence for b in found.bins] == pytest.approx([0.7625, 0.9725])
    assert [b.accuracy for b in found.bins] == [wilson(3, 4), wilson(4, 4)]
    assert found.ece == pytest.approx((0.0125 + 0.0275) / 2)
    assert (found.n, found.n_without) == (8, 0)
    assert reliability(large) is None  # it has no confidence
