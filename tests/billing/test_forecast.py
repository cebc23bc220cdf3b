"""Break-even, ranges and verdict: by hand, and by how often the ranges hold."""

from __future__ import annotations

import numpy as np
import pytest

from smallfirst.billing.forecast import Forecast, forecast, growth_of, month_of
from smallfirst.billing.saved import Amount
from smallfirst.billing.traffic import TaskPeriod

PRICE = Amount(usd=0.002, low_usd=0.0019, high_usd=0.0021, n=50)


def days(n: int = 14, requests: int = 1000) -> list[TaskPeriod]:
    """Days with 900 of 1,000 small: small answers $0.045, drafts $0.005, audits $0.09, of it $0.05 on own machines."""
    per = requests / 1000
    return [
        TaskPeriod(
            period=f"2026-11-{i + 1:02}", n_small=round(900 * per), n_large=round(100 * per) + i % 2,
            small_usd=0.045 * per, large_usd=0.205 * per, draft_usd=0.005 * per, audit_usd=0.09 * per,
            own_usd=0.05 * per,
        )
        for i in range(n)
    ]  # fmt: skip


def test_a_month_by_hand_without_and_with_rent() -> None:
    gain = (900 * 0.002 - 0.045 - 0.005 - 0.09) / 1000.5  # USD a request
    found = forecast(days(), days(), PRICE, once_usd=10.0)
    saved = found.saved_usd
    assert found.requests is not None
    assert saved is not None
    assert found.requests.value == pytest.approx(30 * 1000.5)
    assert saved.usd == pytest.approx(30 * 1000.5 * gain)
    assert saved.low_usd is not None
    assert saved.high_usd is not None
    assert 0 < saved.low_usd < saved.usd < saved.high_usd
    assert found.paid_back_after == int(10 / gain) + 1
    assert found.max_price_cut == pytest.approx(gain / ((900 * 0.002 - 0.09) / 1000.5))
    assert found.verdict.startswith("The small model pays: it saves $49.80 (")
    rented = forecast(days(), days(), PRICE, rent_usd=72.0, utilisation=0.15)
    gain += 0.05 / 1000.5  # the machine's time is in the rent
    assert rented.saved_at() == pytest.approx(30 * 1000.5 * gain - 72)
    assert rented.pays_from == int(72 / gain) + 1
    assert rented.verdict.startswith("Keep the API")
    # Ten times the work takes a second machine.
    assert rented.saved_at(10) == pytest.approx(300 * 1000.5 * gain - 2 * 72)
    assert f"earned from {rented.pays_from:,} requests a month; now there are 30,015" in rented.verdict


def test_sensitivity_moves_one_thing_and_no_share_exceeds_one() -> None:
    found = forecast(days(), days(), PRICE)
    saved = found.sensitivity
    v, priced, own = 30 * 1000.5, (1.8 - 0.09) / 1000.5, 0.05 / 1000.5
    assert saved["requests × 0.5"] == pytest.approx(v / 2 * (priced - own))
    assert saved["the large model's price −90%"] == pytest.approx(v * (priced / 10 - own))
    assert saved["share that stays small × 1.1"] == pytest.approx(v * (priced * 1000.5 / 900 - own))


def test_what_is_not_known_is_said() -> None:
    early = forecast(days(1), days(1), PRICE)
    assert early.saved_usd is None
    assert early.sensitivity == {}
    assert early.verdict.startswith("Too early to say: a forecast needs two whole days of traffic, there are 1. ")
    assert "At the pace so far a month has 30,000 requests and saves about $49.80." in early.verdict
    assert forecast((), days(1), PRICE).pace == 24 * 30_000  # hours
    unsure = forecast(days(), days(), Amount(usd=0.002, low_usd=None, high_usd=None, n=1))
    assert "too few for a range" in unsure.verdict
    between = forecast(days(), days(), Amount(usd=0.0002, low_usd=0.00005, high_usd=0.00035, n=50))
    assert between.verdict.startswith("Not decided: the month saves")
    dear = forecast(days(), days(), Amount(usd=0.0001, low_usd=0.00009, high_usd=0.00011, n=50), once_usd=1.0)
    assert dear.verdict.startswith("Keep the API: with the small model a month costs more, by $")
    assert "is never paid back" in dear.verdict
    assert (dear.pays_from, dear.max_price_cut) == (None, None)
    guess = forecast(days(), days(), PRICE, basis="escalated").verdict
    assert guess.startswith("The small model pays")
    assert "A rough guide: the large model's price is that of the requests that it answered" in guess
    assert Forecast.model_validate_json(dear.model_dump_json(exclude=set(Forecast.model_computed_fields))) == dear


def test_a_trend_is_said_and_chance_is_not() -> None:
    rng = np.random.default_rng(5)
    steady = [growth_of(rng.poisson(rng.gamma(5.0, 40.0, 28)).tolist()) for _ in range(200)]
    assert sum(one is not None for one in steady) <= 10
    assert growth_of([100] * 7 + [90] * 7 + [150] * 7) == 0.5  # the week in the middle is left out
    assert growth_of([100] * 13) is None
    assert growth_of([0] * 14) is None
    rising = [TaskPeriod(n_small=100 + 10 * i, small_usd=0.01) for i in range(28)]
    assert "Requests grew by 85" in forecast(rising, rising, PRICE).verdict


@pytest.mark.parametrize("n", [2, 5, 14, 28])
@pytest.mark.parametrize("kind", ["poisson", "overdispersed", "weekdays"])
def test_the_range_of_a_month_holds_as_often_as_it_says(n: int, kind: str) -> None:
    rng, inside = np.random.default_rng(7), 0
    week = np.array([1.3, 1.3, 1.2, 1.2, 1.2, 0.4, 0.4])
    for _ in range(300):
        rate = np.full(n + 30, 200.0)
        if kind == "overdispersed":
            rate = rng.gamma(5.0, 40.0, n + 30)
        elif kind == "weekdays":
            rate = rate * np.resize(np.roll(week, rng.integers(7)), n + 30)
        counts = rng.poisson(rate)
        found = month_of(counts[:n].tolist())
        assert found is not None
        inside += found.low <= counts[n:].sum() <= found.high
    # Two days, or five, may be a weekend: weekdays are only seen after a week.
    assert inside / 300 >= (0.94 if kind != "weekdays" or n >= 7 else 0.6)
