"""The table of candidates: pairs, corrected p-values, and differences of graded scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from smallfirst.report.candidates import candidate_table
from smallfirst.report.data import ReportData
from smallfirst.stats.intervals import mcnemar

Make = Callable[..., ReportData]


def test_p_values_are_corrected_for_all_pairs(make_report: Make, make_evaluation: Callable[..., Any]) -> None:
    linear = make_evaluation("words", "ffffcccc", cost_usd_per_1k=0.001)  # wrong on every row
    table = candidate_table(make_report(evaluations=(linear, *make_report().evaluations)))
    assert table.reference == "large"
    assert [(p.comparison.first, p.comparison.second) for p in table.pairs] == [
        ("words", "large"),
        ("small", "large"),
        ("routed", "large"),
        ("small", "words"),
    ]
    pair = table.pair("words")
    assert pair is not None
    # Large alone is right on 7 rows: p = 2 / 2^7; one of the two smallest of four, so four times that.
    assert pair.comparison.p_value == pytest.approx(2 / 2**7) == mcnemar(0, 7)
    assert pair.p_holm == pytest.approx(8 / 2**7)
    assert table.pair("large") is None
    assert pair.score is None


def test_graded_answers_are_compared_by_their_scores_too(samples: dict[str, ReportData]) -> None:
    small, large = samples["chat"].evaluation("small"), samples["chat"].evaluation("large")
    pair = candidate_table(samples["chat"]).pair("small")
    assert small is not None
    assert large is not None
    assert pair is not None
    assert pair.score is not None
    assert pair.score.value == pytest.approx(
        np.mean([a.score - b.score for a, b in zip(small.rows, large.rows, strict=True)])
    )


def test_one_candidate_alone_has_nothing_to_be_compared_with(make_report: Make) -> None:
    table = candidate_table(make_report(evaluations=make_report().evaluations[:1]))
    assert (table.pairs, table.reference) == ((), None)
