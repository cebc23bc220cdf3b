"""Every expected figure is worked out by hand in the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.path.report.data import ReportData
from smallfirst.path.report.economics import break_even_requests, path_costs


def test_training_is_paid_back_when_the_saving_has_reached_its_cost() -> None:
    # $1.95 saved per 1,000 requests; $3.90 is reached after exactly 2,000.
    assert break_even_requests(3.9, 0.05, 2.0) == 2000
    # $4.00 needs 2,051.28… requests, so the 2,052nd pays it back.
    assert break_even_requests(4.0, 0.05, 2.0) == 2052
    assert break_even_requests(0.0, 0.05, 2.0) == 0


@pytest.mark.parametrize("large_usd", [0.05, 0.01])
def test_a_path_that_is_not_cheaper_never_pays_its_training_back(large_usd: float) -> None:
    assert break_even_requests(3.9, 0.05, large_usd) is None


def test_routed_cost_is_drafts_plus_the_large_part(
    make_report: Callable[..., ReportData],
) -> None:
    small, large, routed = path_costs(make_report().evaluations, training_usd=3.9)
    # Two of eight rows went large at $2 per 1,000; all eight had a draft at $0.05 per 1,000.
    assert routed.large_part_usd_per_1k == pytest.approx(0.5)
    assert routed.cost_usd_per_1k == pytest.approx(0.55)
    assert (small.training_usd, large.training_usd, routed.training_usd) == (3.9, 0.0, 3.9)
    assert routed.monthly_usd(10_000) == pytest.approx(5.5)
    # Where a linear model drafts, the fine-tune need not be paid.
    assert path_costs(make_report().evaluations, training_usd=3.9, drafts="words")[2].training_usd == 0.0


@given(
    training=st.floats(0, 1e4),
    cost=st.floats(0, 10),
    large=st.floats(0.001, 100),
)
def test_at_break_even_the_path_has_cost_no_more_than_the_large_one(training: float, cost: float, large: float) -> None:
    needed = break_even_requests(training, cost, large)
    if needed is None:
        assert cost >= large
        return
    assert training + cost * needed / 1000 <= large * needed / 1000 * (1 + 1e-6) + 1e-6
