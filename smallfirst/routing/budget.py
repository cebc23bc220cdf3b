"""A budget for escalation: once it is spent, the small model's draft is used, marked as not certified."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from smallfirst.records import Record
from smallfirst.routing.shared_sums import SharedSums, State

_PART_S = {"hour": 60.0, "day": 1440.0, "month": 12 * 3600.0}
_PARTS = 60
"""Parts of a window, which leave it one after the other."""


class Budget(Record):
    """Largest cost of escalated answers."""

    usd: float = Field(gt=0)
    """Largest cost of escalated answers in one window, in USD, over all servers of one ledger."""
    per: Literal["hour", "day", "month"] = "day"
    """Length of the sliding window; a month is 30 days."""


class BudgetTracker:
    """Track what is left of a budget, as far as this process knows since it last called `share`."""

    def __init__(self, budget: Budget, *, now: Callable[[], float] = time.time) -> None:
        self.budget, self._now, self._spent = budget, now, SharedSums()

    def allows(self, cost_usd: float = 0.0) -> bool:
        """Return True if an answer of this cost leaves something of the budget."""
        return sum(self._spent[part] for part in filter(self._counts, self._spent.names())) + cost_usd < self.budget.usd

    def pay(self, cost_usd: float) -> None:
        """Count the cost of an escalated answer."""
        self._spent.add(str(self._part), cost_usd)

    async def share(self, state: State, task: str) -> None:
        """Tell other processes what was paid here, and learn what they paid. Raise what `state` raises."""
        await self._spent.share(state, f"budget/{task}", keep=self._counts)

    @property
    def _part(self) -> int:
        return int(self._now() // _PART_S[self.budget.per])

    def _counts(self, part: str) -> bool:
        return int(part) > self._part - _PARTS
