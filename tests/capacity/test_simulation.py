"""The simulation against formulas of queueing theory, and what limits, bursts and the large path do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smallfirst.capacity.simulation import Rates, Scenario, Simulated, simulate

EXPONENTIAL = tuple((-np.log1p(-(np.arange(2000) + 0.5) / 2000)).tolist())
"""Mid-quantiles of the exponential distribution, whose mean is 1 within 0.1 %."""


def run(n_requests: int = 8000, replications: int = 4, **fields: object) -> Simulated:
    return simulate(Scenario.model_validate(fields), n_requests=n_requests, replications=replications)


def waiting_chance(load: float, servers: int) -> float:
    """Erlang's C formula: the chance to wait in M/M/c at a load in Erlangs."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    all_busy = load**servers / math.factorial(servers) / (1 - load / servers)
    return all_busy / (sum(terms) + all_busy)


def test_m_m_1() -> None:
    found = run(rate_per_s=5.0, rates=Rates(per_s={1: 10.0}, work=EXPONENTIAL), in_flight=10_000)
    assert found.mean_ms.value == pytest.approx(1000 / (10 - 5), rel=0.08)
    assert found.p95_ms.value == pytest.approx(1000 * -math.log(0.05) / (10 - 5), rel=0.1)  # the time is exponential
    assert found.p95_ms.low < found.p95_ms.value < found.p95_ms.high
    assert found.refused == 0


def test_m_d_1() -> None:
    found = run(rate_per_s=7.0, rates=Rates(per_s={1: 10.0}), in_flight=10_000)
    assert found.mean_ms.value == pytest.approx(100 * (1 + 0.7 / (2 * 0.3)), rel=0.08)  # Pollaczek and Khinchine


def test_m_m_c_in_one_replica() -> None:
    """Three slots whose rate grows with the number of requests are three servers with one queue."""
    small = Rates(per_s={1: 10.0, 3: 30.0}, work=EXPONENTIAL)
    assert small.slots == 3
    found = run(rate_per_s=21.0, rates=small, in_flight=10_000)
    assert found.mean_ms.value == pytest.approx(100 + 1000 * waiting_chance(2.1, 3) / (30 - 21), rel=0.08)


def test_rates_between_the_measured_numbers() -> None:
    rates = Rates(per_s={1: 10.0, 3: 20.0, 8: 19.0})
    assert rates.by_number == (10.0, 14.75, 19.5, 19.5, 19.5, 19.5, 19.5, 19.5)  # a fall is noise: both are their mean
    assert (rates.slots, rates.most_per_s) == (2, 19.5)


def test_requests_without_a_place_are_refused() -> None:
    """M/D/1 with two places at twice the capacity: it stands idle where nobody came during an answer (e**-2)."""
    scenario = Scenario(rate_per_s=20.0, rates=Rates(per_s={1: 10.0}), in_flight=1, queue=1)
    assert scenario.utilisation == 2
    answered_per_s = 1 / (0.1 + math.exp(-2) / 20)
    assert simulate(scenario, n_requests=2000, replications=4).refused == pytest.approx(
        1 - answered_per_s / 20, abs=0.02
    )


def test_bursts_and_blind_balancing_cost_latency() -> None:
    fields = {
        "rate_per_s": 120.0,
        "rates": Rates(per_s={1: 50.0}),
        "replicas": 4,
        "in_flight": 10_000,
        "n_requests": 3000,
    }
    even = run(**fields).p95_ms.value
    assert run(**fields, balance="random").p95_ms.value > 1.3 * even
    assert run(**fields, burst=0.5).p95_ms.value > 1.3 * even


def test_escalated_requests_take_the_large_models_time() -> None:
    fields = {"rate_per_s": 5.0, "rates": Rates(per_s={1: 1000.0}), "share_large": 0.3}
    found = run(**fields, large_ms=(500.0, 700.0), n_requests=1000)
    assert found.small_p95_ms.value < 5
    assert found.p50_ms.value < 5 < 695 < found.p95_ms.value < 705
    assert len(found.latencies_ms) == 100
    assert found.latencies_ms[-1] > 700


def test_many_replicas_are_simulated_as_a_group() -> None:
    few = run(rate_per_s=96.0, rates=Rates(per_s={1: 10.0}), replicas=16, n_requests=500)
    many = run(rate_per_s=960.0, rates=Rates(per_s={1: 10.0}), replicas=160, n_requests=500)
    assert many == few
