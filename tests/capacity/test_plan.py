"""Numbers of machines, costs and the verdict, from rates and prices by hand."""

from __future__ import annotations

from typing import Any

import pytest

from smallfirst.capacity.measurement import Measurement
from smallfirst.capacity.plan import CapacityPlan, Demand, capacity_plan
from smallfirst.capacity.simulation import Rates
from smallfirst.errors import ConfigError
from smallfirst.pricing.machine import MachinePrice
from smallfirst.pricing.prices import PriceBook

MONTH_S = 30 * 86400
PRICES = PriceBook(
    machine=MachinePrice(usd_per_hour=0.1),
    machines={"big": MachinePrice(usd_per_hour=0.3), "gpu": MachinePrice(usd_per_hour=2.0)},
)


def measured(per_s: dict[int, float], **fields: Any) -> Measurement:
    return Measurement(model="t", rates=Rates(per_s=per_s), n=100, source="by hand", **fields)


def plan(*machines: Measurement, p95_ms: float = 300.0, spare: int = 0, **fields: Any) -> CapacityPlan:
    """A plan for 100 requests a second in the busiest hour."""
    values: dict[str, Any] = {
        "requests_per_month": 50 * MONTH_S, "peak": 2.0, "burst": 0.0, "share_large": 0.0, "share_asked": 0.0,
        "large_ms": (), "large_usd": None, "sources": (),
    }  # fmt: skip
    demand = Demand(**(values | fields))
    return capacity_plan(demand, machines, PRICES, p95_ms=p95_ms, spare=spare, n_requests=600)


def test_one_machine_is_enough() -> None:
    found = plan(measured({1: 400.0}))
    (one,) = found.tried
    assert (one.machines, one.utilisation, one.meets) == (1, 0.25, True)
    assert one.machines_usd == pytest.approx(0.1 * 730)
    assert found.verdict.replace("\N{NO-BREAK SPACE}", " ").startswith(
        "One machine is enough: 25 % used in the busiest hour."
    )
    assert "--spare 1" in found.verdict
    assert "test this load" not in found.verdict
    assert "gpu: not measured; on it:  smallfirst plan task.yaml --measure --machine gpu" in found.assumptions


def test_as_many_machines_as_the_rate_and_the_latency_take() -> None:
    """Three machines keep up at 95 %, but only four keep the latency low."""
    found = plan(measured({1: 35.0}), p95_ms=110)
    assert [(one.machines, one.meets) for one in found.tried] == [(3, False), (4, True)]
    assert found.chosen == found.tried[-1]
    assert "Above half, a p95 of up to three times the one foretold was measured" in found.verdict  # four: 71 % used
    assert [one.machines for one in plan(measured({1: 35.0}), p95_ms=110, spare=1).tried] == [4, 5]


def test_the_cheapest_kind_is_chosen() -> None:
    """One server that does 125/s for $0.3, or six that do 25/s for $0.1 each; two servers share a machine."""
    found = plan(measured({1: 25.0}), measured({1: 125.0}, machine="big", processes=2), p95_ms=100)
    assert found.chosen is not None
    assert (found.chosen.machine, found.chosen.machines, found.chosen.replicas) == ("big", 1, 2)
    assert found.chosen.utilisation == pytest.approx(0.4)


def test_keep_the_api_where_it_bills_less() -> None:
    fields = {"share_large": 0.2, "share_asked": 0.25, "large_ms": (90.0,), "large_usd": 1e-7}
    found = plan(measured({1: 400.0}), **fields)
    assert found.api_usd == pytest.approx(50 * MONTH_S * 1e-7)
    assert found.verdict.startswith(
        "Keep the API: it bills $12.96 a month, and small first on 1 machine would cost $76.24."
    )
    dear = plan(measured({1: 400.0}), **fields | {"large_usd": 1e-5})
    assert dear.chosen is not None
    assert dear.chosen.large_usd == pytest.approx(50 * MONTH_S * 0.25 * 1e-5)
    assert "Keep" not in dear.verdict


def test_no_machine_speeds_up_the_large_model() -> None:
    found = plan(measured({1: 400.0}), share_large=0.2, share_asked=0.2, large_ms=(900.0,), large_usd=1e-4)
    assert found.only_small
    assert found.chosen is not None
    assert found.chosen.simulated.p95_ms.value > 900
    assert found.verdict.startswith("No number of machines brings the p95 of all requests to 300")


def test_a_large_model_of_ones_own() -> None:
    """A quarter of 100 requests a second on replicas that do 20 together: two of them, whose time is then waited."""
    small, large = measured({1: 400.0}), measured({1: 5.0, 4: 20.0}, machine="gpu", large=True)
    found = plan(small, large, p95_ms=500, share_large=0.25, share_asked=0.25, large_ms=(450.0,), large_usd=1e-3)
    hosted, own = found.tried
    assert hosted.large is None
    assert own.large is not None
    assert own.large.machines == 2
    assert own.large_usd == 0
    assert own.machines_usd == pytest.approx(730 * (0.1 + 2 * 2.0))
    assert 200 < own.simulated.p95_ms.value < 450
    assert found.chosen == own  # 33 million answers at $0.001 are more


def test_nothing_meets_the_target() -> None:
    found = plan(measured({1: 2.0}), p95_ms=300)
    assert found.chosen is None
    assert found.verdict.startswith("No number that was tried meets the target")


def test_a_machine_needs_a_price() -> None:
    with pytest.raises(ConfigError, match=r'no machine "tpu" under prices\.machines'):
        plan(measured({1: 400.0}, machine="tpu"))
