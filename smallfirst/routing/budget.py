"""A budget for escalation: once it is spent, the small model's draft is used, marked as not certified."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from smallfirst.records import Record

WINDOW_SECONDS = {"hour": 3600.0, "day": 86400.0, "month": 30 * 86400.0}


class Budget(Record):
    """Largest cost of escalated answers."""

    usd: float = Field(gt=0)
    """Largest cost of escalated answers in one window, in USD."""
    per: Literal["hour", "day", "month"] = "day"
    """Length of the sliding window; a month is 30 days."""


class BudgetTracker:
    """Track what is left of a budget. After a restart, report earlier payments again."""

    def __init__(self, budget: Budget, *, now: Callable[[], float] = time.monotonic) -> None:
        self.budget, self._now = budget, now
        self._spent: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def allows(self, cost_usd: float = 0.0) -> bool:
        self._forget()
        return self._sum + cost_usd < self.budget.usd

    def pay(self, cost_usd: float, *, age_s: float = 0.0) -> None:
        """Count the cost of an answer escalated `age_s` seconds ago. Call with the oldest payments first."""
        self._spent.append((self._now() - age_s, cost_usd))
        self._sum += cost_usd

    def _forget(self) -> None:
        oldest = self._now() - WINDOW_SECONDS[self.budget.per]
        while self._spent and self._spent[0][0] <= oldest:
            self._sum -= self._spent.popleft()[1]
        if not self._spent:
            self._sum = 0.0  # rounding errors must not add up
