"""Cuts are shown in their order, at any row, and a certificate says so."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.certificates import certificate

from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.sampling_plan import Cut, PlannedRow, SamplingPlan, judge_cuts, with_sampled_labels
from smallfirst.stats.low_rate import more_right_rows


def plan(confidence: list[float], **changes: Any) -> SamplingPlan:
    """Two cuts, 0.9 above 400 and 0.6 above 800 of 1,000 requests."""
    values: dict[str, Any] = {
        "run": "r",
        "candidate": "words",
        "model_fingerprint": "m",
        "guarantee": Guarantee(max_error=0.1),
        "traffic": "traffic.jsonl",
        "traffic_fingerprint": "t",
        "n_traffic": 1000,
        "n_reached": 1000,
        "n_labels": 100,
        "cuts": (Cut(threshold=0.9, n_above=400), Cut(threshold=0.6, n_above=800)),
        "rows": tuple(
            PlannedRow(text=str(i), answer="a", confidence=c, stratum="above", propensity=0.1)
            for i, c in enumerate(confidence)
        ),
    }
    return SamplingPlan(**(values | changes))


N = more_right_rows(0, 0, 0.1, level=0.05)
"""Right rows that show one cut."""


def test_each_cut_counts_the_rows_above_it() -> None:
    strict, loose = judge_cuts(plan([0.95, 0.7] * 10), [True, True, True, False])
    assert (strict.n, strict.n_wrong, loose.n, loose.n_wrong) == (2, 0, 4, 1)
    assert strict.n_more_right == N - 2
    assert loose.n_more_right > N
    assert not strict.shown


def test_a_looser_cut_is_shown_only_after_the_stricter_one() -> None:
    right = [True] * N
    strict, loose = judge_cuts(plan([0.7] * N), right)
    assert (strict.shown, loose.shown, loose.n_more_right) == (False, False, 0)
    strict, loose = judge_cuts(plan([0.95] * N), right)
    assert (strict.shown, loose.shown) == (True, True)


def test_what_was_shown_stays_shown_whatever_follows() -> None:
    rows, right = [0.95] * (N + 40), [True] * N + [False] * 40
    assert [one.shown for one in judge_cuts(plan(rows), right)] == [True, True]
    assert [one.shown for one in judge_cuts(plan(rows), right[40:])] == [False, False]


def test_the_certificate_keeps_what_is_above_the_loosest_cut_that_is_shown() -> None:
    of = plan([0.95] * N + [0.7] * 30)
    made = with_sampled_labels(certificate(0.5, look=3), of, [True] * N + [False] * 30)
    # The first N rows are above both cuts, so both are shown before an error comes.
    assert (made.issued, made.threshold, made.n_labels) == (True, 0.6, N + 30)
    assert (made.n_accepted, made.n_errors, made.look) == (N + 30, 30, None)
    assert made.coverage.value == pytest.approx(0.8)
    assert made.error_bound <= 0.1
    assert made.covers("a", 0.65)
    assert not made.covers("a", 0.55)


def test_the_certificate_says_how_many_right_rows_are_missing() -> None:
    made = with_sampled_labels(certificate(0.5), plan([0.95] * N), [True] * (N - 12))
    assert (made.issued, made.threshold > 1, made.n_accepted) == (False, True, 0)
    assert made.why.endswith("; 12 more, all right, would show it")
    assert not made.covers("a", 0.99)


def test_a_plan_needs_a_limit_on_errors() -> None:
    assert plan([]).limit == 0.1
    assert plan([]).level == pytest.approx(0.05)
