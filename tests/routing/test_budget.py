"""A budget is overspent by no more than the answers under way, whichever process gave them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from smallfirst.ledger.ledger import Ledger, LedgerAway
from smallfirst.routing.budget import BudgetTracker, EscalationBudget


def test_a_budget_slides() -> None:
    clock = [0.0]
    tracker = BudgetTracker(EscalationBudget(usd=1.0, per="hour"), now=lambda: clock[0])
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


def test_processes_spend_one_budget_and_one_that_starts_knows_what_is_left(tmp_path: Path) -> None:
    clock, state = [0.0], Ledger(tmp_path / "ledger.db").shared
    first, second, other = (BudgetTracker(EscalationBudget(usd=1.0), now=lambda: clock[0]) for _ in range(3))
    first.pay(0.5)
    second.pay(0.3)
    assert first.allows(0.4)

    async def share() -> None:
        for tracker in (first, second, first):
            await tracker.share(state, "tickets")
        await other.share(state, "bills")

    asyncio.run(share())
    assert [tracker.allows(0.3) for tracker in (first, second, other)] == [False, False, True]
    fresh = BudgetTracker(EscalationBudget(usd=1.0), now=lambda: clock[0])
    asyncio.run(fresh.share(state, "tickets"))
    assert (fresh.allows(0.1), fresh.allows(0.3)) == (True, False)
    clock[0] = 86_400
    assert fresh.allows(0.9)
    fresh.pay(0.1)
    asyncio.run(fresh.share(state, "tickets"))
    assert state.get("budget/tickets") == {"60": 0.1}  # what is out of the window is dropped


def test_what_could_not_be_told_is_told_later(tmp_path: Path) -> None:
    class Away:
        async def update(self, name: str, change: Any) -> Any:
            tracker.pay(0.1)  # while it was tried
            raise LedgerAway("no connection")

    tracker, state = BudgetTracker(EscalationBudget(usd=1.0), now=lambda: 0.0), Ledger(tmp_path / "ledger.db").shared
    tracker.pay(0.2)
    with pytest.raises(LedgerAway):
        asyncio.run(tracker.share(Away(), "tickets"))
    assert (tracker.allows(0.65), tracker.allows(0.75)) == (True, False)
    asyncio.run(tracker.share(state, "tickets"))
    assert state.get("budget/tickets") == {"0": pytest.approx(0.3)}
