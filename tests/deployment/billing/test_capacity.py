"""Machines for a month's requests, beside the API's bill. Expected figures are worked out by hand."""

from __future__ import annotations

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.deployment.billing.capacity import Capacity, capacity
from smallfirst.models.pricing import MachinePrice

PRICE = MachinePrice(usd_per_hour=1.0)  # 730 USD a month
LARGE = evaluation_of([evaluated_row(str(i), "a", "a", cost_usd=0.01) for i in range(4)], cost_usd_per_1k=10.0)
ROUTED = evaluation_of(
    [evaluated_row("0", "a", "a", stage="large", cost_usd=0.01), *(evaluated_row(str(i), "a", "a") for i in (1, 2, 3))],
    candidate="routed",
)


def plan(requests_per_month: float, **given: object) -> Capacity:
    values: dict = {"requests_per_s": 10.0, "source": "measured", "routed": ROUTED, "large": LARGE, **given}
    return capacity(requests_per_month, PRICE, **values)


@pytest.mark.parametrize(("requests", "machines"), [(4_380_000, 1), (4_380_001, 2), (8_760_000, 2), (1, 1)])
def test_machines_hold_the_busiest_hour_times_the_headroom(requests: int, machines: int) -> None:
    # 4,380,000 a month are 1 2/3 a second, 5 in an hour of three times the mean, 10 with a headroom of 2.
    assert plan(requests).machines == machines


def test_the_money_is_rent_and_what_goes_on_to_the_large_model() -> None:
    found = plan(4_380_000)
    assert found.peak_per_s == pytest.approx(5.0)
    assert found.machines_usd == pytest.approx(730.0)
    assert (found.share_large, found.large_usd, found.api_usd) == (0.25, pytest.approx(10_950), pytest.approx(43_800))
    assert not found.keep_api
    assert found.in_words[-1] == "verdict: take 1 machine"
    assert "1 machine, 50\u00a0% used in that hour: one answers 10/s (measured)" in found.in_words


def test_the_api_stays_where_it_costs_no_more() -> None:
    # A quarter still goes on to the large model, so a month pays back from 730 / (0.75 * 0.01) = 97,333 requests on.
    assert plan(97_333).keep_api
    assert plan(97_333).in_words[-1] == "verdict: keep the API"
    assert not plan(97_334).keep_api


def test_without_an_evaluation_of_the_large_model_its_bill_is_unknown() -> None:
    found = plan(4_380_000, large=None)
    assert (found.large_usd, found.api_usd, found.keep_api) == (None, None, False)
    assert found.in_words[-1].endswith("the large model was not evaluated, its bill is unknown")
