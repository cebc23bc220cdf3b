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


R = TypeVar("R")


class State(Protocol):
    """Values by name that are replaced by what a function makes of them, as in `serving.ledger.shared_state`."""

    async def update(self, name: str, change: Callable[[Any, float], tuple[Any, R]]) -> R: ...


class SharedSums:
    """Amounts by name, none below 0: all that this process has added, and what others had told at the last `share`."""

    def __init__(self) -> None:
        self._all: dict[str, float] = {}
        self._mine: dict[str, float] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """Add an amount, or take one away."""
        self._mine[name] = max(self._mine.get(name, 0.0) + amount, -self._all.get(name, 0.0))

    def __getitem__(self, name: str) -> float:
        return self._all.get(name, 0.0) + self._mine.get(name, 0.0)

    def names(self) -> set[str]:
        """Return the names that anything was added to."""
        return {*self._all, *self._mine}

    async def share(self, state: State, name: str, *, keep: Callable[[str], bool] = lambda name: True) -> None:
        """Tell the others, and learn what they told; drop what is not to be kept. Raise what `state` raises."""
        mine, self._mine = self._mine, {}

        def change(known: dict[str, float] | None, _: float) -> tuple[Any, dict[str, float]]:
            before = known or {}
            sums = {name: before.get(name, 0.0) + mine.get(name, 0.0) for name in {**before, **mine} if keep(name)}
            after = {name: amount for name, amount in sums.items() if amount > 0}
            return (known if after == before else after), after

        try:
            self._all = await state.update(name, change)
        except SmallfirstError:
            for each, amount in mine.items():
                self.add(each, amount)
            raise
