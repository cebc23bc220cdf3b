"""A budget for escalation: once it is spent, the small model's draft is used, marked as not certified."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

from pydantic import Field

from smallfirst.base.errors import SmallfirstError
from smallfirst.base.records import Record

_PART_S = {"hour": 60.0, "day": 1440.0, "month": 12 * 3600.0}
_PARTS = 60
"""Parts of a window, which leave it one after the other."""
R = TypeVar("R")


class EscalationBudget(Record):
    """Largest cost of escalated answers."""

    usd: float = Field(gt=0)
    """Largest cost of escalated answers in one window, in USD, over all servers of one ledger."""
    per: Literal["hour", "day", "month"] = "day"
    """Length of the sliding window; a month is 30 days."""


class State(Protocol):
    """Values by name that are replaced by what a function makes of them, as in `ledger.shared`."""

    async def update(self, name: str, change: Callable[[Any, float], tuple[Any, R]]) -> R: ...


class BudgetTracker:
    """Track what is left of a budget: all that this process has paid, and what others had told at the last `share`."""

    def __init__(self, budget: EscalationBudget, *, now: Callable[[], float] = time.time) -> None:
        self.budget, self._now = budget, now
        self._all: dict[str, float] = {}
        self._mine: dict[str, float] = {}
        """USD by part of the window: told by all processes, and not told yet."""

    def allows(self, cost_usd: float = 0.0) -> bool:
        """Return True if an answer of this cost leaves something of the budget."""
        return sum(self._sum(self._all, self._mine).values()) + cost_usd < self.budget.usd

    def pay(self, cost_usd: float) -> None:
        """Count the cost of an escalated answer."""
        part = str(self._part)
        self._mine[part] = self._mine.get(part, 0.0) + cost_usd

    async def share(self, state: State, task: str) -> None:
        """Tell other processes what was paid here, and learn what they paid. Raise what `state` raises."""
        told, self._mine = self._mine, {}

        def change(known: dict[str, float] | None, _: float) -> tuple[Any, dict[str, float]]:
            after = self._sum(known or {}, told)
            return (known if after == (known or {}) else after), after

        try:
            self._all = await state.update(f"budget/{task}", change)
        except SmallfirstError:
            self._mine = self._sum(told, self._mine)
            raise

    def _sum(self, *sums: dict[str, float]) -> dict[str, float]:
        """Return the sums of those parts that are in the window."""
        parts = {part for one in sums for part in one if int(part) > self._part - _PARTS}
        return {part: sum(one.get(part, 0.0) for one in sums) for part in parts}

    @property
    def _part(self) -> int:
        return int(self._now() // _PART_S[self.budget.per])
