"""A budget is never overspent by more than one answer."""

from __future__ import annotations

from smallfirst.routing.budget import Budget, BudgetTracker


def test_a_budget_slides() -> None:
    clock = [0.0]
    tracker = BudgetTracker(Budget(usd=1.0, per="hour"), now=lambda: clock[0])
    assert tracker.allows(0.9)
    assert not tracker.allows(1.0)
    tracker.pay(0.6)
    clock[0] = 1800
    tracker.pay(0.6)
    assert not tracker.allows()
    clock[0] = 3600  # the first payment is an hour old
    assert tracker.allows(0.3)
    clock[0] = 5400
    assert tracker.allows(0.99)
