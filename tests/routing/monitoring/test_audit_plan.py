"""Which answers are audited: chances are known, average the share, have a floor, and their sum has a bound."""

from __future__ import annotations

import random
from typing import Any

import pytest

from smallfirst.routing.certificate.summary import ThresholdPoint
from smallfirst.routing.monitoring.audit_plan import (
    BURST,
    MAX_WEIGHT,
    SAVING,
    SUSPICION,
    UNIFORM,
    AuditAllocation,
    AuditBudget,
    allocate_audits,
    share_wrong,
)
from smallfirst.stats.sequential import weighted_interval


def curve(*points: tuple[float, int, int]) -> tuple[ThresholdPoint, ...]:
    """A certificate's curve of (threshold, rows accepted, errors among them)."""
    values: dict[str, Any] = {"error_bound": 0.1, "routed_accuracy": 0.9, "routed_cost_usd_per_1k": 1.0}
    return tuple(ThresholdPoint(threshold=t, n_accepted=n, n_errors=e, **values) for t, n, e in points)


TYPICAL = curve((1.1, 0, 0), (0.9, 200, 1), (0.8, 300, 3), (0.6, 350, 6), (0.5, 400, 20), (0.2, 450, 50))


def test_uncertain_answers_have_a_larger_chance_whose_mean_is_the_share() -> None:
    found = allocate_audits(TYPICAL, 0.5)
    assert found.cuts == (0.6, 0.8, 0.9)
    assert list(found.levels) == sorted(found.levels, reverse=True)
    assert found.levels[0] > 2 > 1 > found.levels[-1] >= 1 / MAX_WEIGHT
    mean = sum(rows * level for rows, level in zip((50, 50, 100, 200), found.levels, strict=True)) / 400
    assert mean == pytest.approx(1, abs=1e-6)
    # Neyman: chances in proportion to sqrt(m (1 - m)), with ten rows of the mean error 1/20 added to each band.
    low, next_ = (14 + 0.5) / 60, (3 + 0.5) / 60
    ratio = (low * (1 - low) / next_ / (1 - next_)) ** 0.5
    assert found.levels[0] / found.levels[1] == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("points", [(), ((1.1, 0, 0),), ((1.1, 30, 2), (0.5, 30, 2))])
def test_without_accepted_rows_of_the_last_stage_all_chances_are_equal(points: Any) -> None:
    assert allocate_audits(curve(*points), 0.5) == UNIFORM


def test_without_an_error_all_chances_are_equal() -> None:
    found = allocate_audits(curve((1.1, 0, 0), (0.9, 200, 0), (0.8, 300, 0), (0.5, 400, 0)), 0.5)
    assert found.levels == pytest.approx([1] * len(found.levels))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 1.0])
def test_a_chance_times_its_weight_is_the_rate(rate: float) -> None:
    allocation = AuditAllocation((0.6, 0.9), (3.0, 1.0, 0.5))
    for confidence in (None, 0.5, 0.6, 0.95):
        share, weight = allocation.draw(rate, confidence)
        assert 0 < share <= 1
        assert share * weight == pytest.approx(rate)
        assert weight <= MAX_WEIGHT
    assert UNIFORM.draw(rate, 0.3) == (rate, 1.0)
    assert allocation.draw(0.02, None).weight == 1
    shares = [allocation.draw(rate, confidence).propensity for confidence in (0.5, 0.6, 0.95)]
    assert (shares == [1.0] * 3) == (rate == 1)
    assert shares == sorted(shares, reverse=True)


def test_audits_that_look_bad_are_followed_by_more_until_the_reserve_is_spent() -> None:
    budget = AuditBudget(0.02, 5)
    assert budget.rate(0.0) == 0.02
    assert budget.rate(SUSPICION) == 0.02 * BURST
    while not budget.spent:
        budget.pay(budget.rate(SUSPICION))
    assert budget.rate(SUSPICION) == budget.rate(0.0) == pytest.approx(0.02 * (1 - SAVING))
    for _ in range(1400):  # a tenth of the share is saved: 0.002 a request, until one audit of five is missing
        budget.pay(budget.rate(0.0))
    assert budget.rate(0.0) == pytest.approx(0.02 * (1 - SAVING))
    for _ in range(500):
        budget.pay(budget.rate(0.0))
    assert budget.rate(0.0) == 0.02
    assert AuditBudget(0.5, 5).rate(SUSPICION) == 1.0


def test_without_a_reserve_the_share_stays_the_same() -> None:
    budget = AuditBudget(0.02, 0)
    for _ in range(1000):
        assert budget.rate(SUSPICION) == 0.02
        budget.pay(0.06)
    assert not budget.spent


def test_the_sum_of_the_chances_has_a_bound_whatever_happens() -> None:
    draw, budget, total = random.Random(0), AuditBudget(0.05, 20), 0.0
    for number in range(1, 5001):
        rate = budget.rate(SUSPICION)
        chance = rate if budget.spent else min(1.0, rate * draw.choice([1.0, 3.0]))
        budget.pay(chance)
        total += chance
        assert total <= 0.05 * number + 20
    assert total > 0.05 * 5000 - 20


def test_the_share_wrong_is_bounded_by_weighted_audits_and_tighter_where_all_weigh_the_same() -> None:
    equal, mixed = [(1.0, i < 3) for i in range(60)], [(1.5 if i % 2 else 0.5, i < 3) for i in range(60)]
    assert share_wrong(equal) == weighted_interval({(1.0, True): 3, (1.0, False): 57})
    assert share_wrong(mixed).value == pytest.approx((0.5 + 1.5 + 0.5) / 60)
    assert share_wrong(mixed).high > share_wrong(equal).high > 0.05
    assert share_wrong([(MAX_WEIGHT + 1e-12, True)]).n == 1  # rounded when it was written
