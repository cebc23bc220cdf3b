"""Numbers of machines, costs and the verdict, from rates and prices by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.billing.traffic import TaskPeriod
from smallfirst.capacity.measurement import Measurement
from smallfirst.capacity.plan import ASSUMED_PEAK, CapacityPlan, Demand, capacity_plan, demand, dispersion, hourly_peak
from smallfirst.capacity.simulation import Rates
from smallfirst.errors import ConfigError
from smallfirst.pricing.machine import MachinePrice
from smallfirst.pricing.prices import PriceBook
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import LedgerRow

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
    assert "Above half, a p95 of up to 2.4 times the one foretold was measured" in found.verdict  # four: 71 % used
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


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """400 answers within a quarter of an hour, a quarter of them by the large model: 500 ms, $0.01 and a draft."""
    found = Ledger(tmp_path / "ledger.db")
    begin = (datetime.now(UTC) - timedelta(days=1)).replace(minute=0, second=0, microsecond=0)
    draft = {"model": "s", "usd": 0.001, "busy_s": 1.0, "basis": "machine time", "purpose": "draft"}
    bill = json.dumps([draft, {"model": "l", "usd": 0.01, "basis": "tokens"}])
    rows = []
    for i in range(400):
        large = (i % 2 == 0 and i % 4 == 0) or (i >= 200 and i % 2 == 0)
        rows.append(LedgerRow(
            id=str(i), at=begin + timedelta(seconds=2 * i), served_name="t", status=200, task="t",
            latency_ms=500.0 if large else 2.0, stage="large" if large else "small", answered_by="x",
            cost_usd=0.011 if large else 0.0, charges=bill if large else None,
        ))  # fmt: skip
    found.append(*rows)
    yield found
    found.close()


def test_the_ledger_is_believed_from_200_answers_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallfirst.capacity.plan.MIN_ANSWERS", 150)  # of the large model as well
    routed = evaluation_of([evaluated_row("a", "x", "x", stage="large")], candidate="routed")
    found = demand(2_592_000, ledger, "t", routed=routed, audit_share=0.1, peak=2.0)
    assert found.share_large == 150 / 400  # not the 100 % of the evaluation
    assert found.share_asked == pytest.approx(0.375 + 0.625 * 0.1)
    assert found.large_usd == pytest.approx(0.01)  # without the draft
    assert np.median(found.large_ms) == pytest.approx(500, rel=0.05)
    assert found.peak_per_s == 2.0  # 2,592,000 seconds of a month
    assert found.burst == 0.0  # as even as can be


def test_without_a_ledger_evaluation_and_assumptions_are_named() -> None:
    rows = [
        evaluated_row(str(i), "x", "x", stage="large" if i < 2 else "small", latency_ms=100.0 * i) for i in range(8)
    ]
    large = evaluation_of(rows, candidate="large", cost_usd_per_1k=20.0)
    found = demand(1e6, None, "t", routed=evaluation_of(rows, candidate="routed"), large=large)
    assert (found.share_large, found.large_usd, found.peak, found.burst) == (0.25, 0.02, ASSUMED_PEAK, 0.0)
    assert max(found.large_ms) > 600
    assert [source for source in found.sources if "assumed" in source] == [
        "busiest hour 3 × the mean rate: assumed (--peak)",
        "arrivals between 10 s of that hour: Poisson: assumed (--burst)",
    ]


def test_the_busiest_hour_is_that_of_the_mean_day() -> None:
    """Two whole days of 24 requests, twice as many at nine; the first and the last day are no whole ones."""
    days = [f"2026-11-{day:02d}" for day in (1, 2, 3, 4)]
    hours = [TaskPeriod(period=f"{day}T{hour:02d}", n_small=2 + 2 * (hour == 9)) for day in days for hour in range(24)]
    assert hourly_peak(hours) == pytest.approx(4 / (50 / 24))
    assert hourly_peak(hours[:71]) is None
    assert hourly_peak(()) is None


def test_dispersion_is_the_variation_beyond_poisson() -> None:
    draw = np.random.default_rng(1)
    rates = draw.gamma(4, 1 / 4, 2000)  # coefficient of variation 1/2
    counts = draw.poisson(30 * rates)
    times = [0.0] + [10 * (window + at) for window, n in enumerate(counts) for at in draw.random(n)]
    assert dispersion(times) == pytest.approx(0.5, abs=0.03)
    even = [0.0] + [10 * (window + at) for window in range(2000) for at in draw.random(draw.poisson(30))]
    assert dispersion(even) == pytest.approx(0.0, abs=0.05)
    assert dispersion([0.0, 50.0]) is None
    assert dispersion([]) is None  # the hour's rows may have gone
