"""Demand from a ledger whose figures are known, from an evaluation, and assumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.billing.traffic import TaskPeriod
from smallfirst.capacity.plan import ASSUMED_PEAK, demand, dispersion, hourly_peak
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import LedgerRow


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
