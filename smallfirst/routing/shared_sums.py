"""Sums that the processes of one ledger have in common: each counts in its memory and tells the others now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from smallfirst.errors import SmallfirstError

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
