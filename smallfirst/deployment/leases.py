"""Leases of the review queue: whoever looks at an answer holds it for a while, so that two people get different ones.

They are shared by all processes of a ledger. A lease hinders nobody: another may take the answer over, and a verdict
counts whoever holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from smallfirst.serving.ledger.shared_state import MemoryState, SharedState

LEASE_S = 120.0
"""Seconds for which an answer is held; each claim of it by its holder begins them anew."""
MARKED_S = 60.0
"""Seconds for which an answer that was marked is offered to nobody: longer than a process keeps its order of them."""
_SKIP_S = 3600.0
_MOST_SKIPPED = 2_000
_NAME = "review queue"
_NOBODY = ("", "\x1fmarked")
"""Holds an answer that was marked; no window has this name."""
R = TypeVar("R")
_Held = dict[str, tuple[str, str, float]]
"""By response id: owner and worker of the holder, and until when."""


class Holder(NamedTuple):
    """A person at work: a window of a browser, or a program."""

    owner: str
    """Owner of the key; empty where none is asked for."""
    worker: str
    """What tells apart two windows with the same key, or without one."""


class Leases:
    """Who holds which answer, and what each has skipped. Raise LedgerAway."""

    def __init__(self, state: SharedState | MemoryState) -> None:
        self._state = state

    async def holders(self) -> dict[str, Holder]:
        """Return who holds which answers now."""
        held = await self._state.update(_NAME, lambda value, now: (value, _current(value, now)[0]))
        return {id: Holder(owner, worker) for id, (owner, worker, _) in held.items() if (owner, worker) != _NOBODY}

    async def claim(self, ids: Sequence[str], holder: Holder, *, take_over: bool = False) -> str | None:
        """Hold the first of `ids` that nobody else holds and the holder has not skipped, and let go of all others."""

        def change(held: _Held, skipped: list[Any], now: float) -> str | None:
            mine = {id for *who, id, _ in skipped if tuple(who) == holder}
            free = (id for id in ids if id not in mine and tuple(held.get(id, (*holder, 0))[:2]) == holder)
            if (claimed := next(iter(ids), None) if take_over else next(free, None)) is not None:
                for id in [id for id, one in held.items() if tuple(one[:2]) == holder]:
                    del held[id]
                held[claimed] = (*holder, now + LEASE_S)
            return claimed

        return await self._change(change)

    async def skip(self, id: str, holder: Holder) -> None:
        """Let go of an answer and do not offer it to the holder again, for an hour."""

        def change(held: _Held, skipped: list[Any], now: float) -> None:
            skipped.append((*holder, id, now + _SKIP_S))
            if tuple(held.get(id, ())[:2]) == holder:
                del held[id]

        await self._change(change)

    async def release(self, id: str, *, marked: bool) -> None:
        """Let go of an answer; one that is marked is offered to nobody for a while."""

        def change(held: _Held, _: list[Any], now: float) -> None:
            held.pop(id, None)
            if marked:
                held[id] = (*_NOBODY, now + MARKED_S)

        await self._change(change)

    async def _change(self, change: Callable[[_Held, list[Any], float], R]) -> R:
        def of_value(value: Any, now: float) -> tuple[Any, R]:
            held, skipped = _current(value, now)
            result = change(held, skipped, now)
            return {"held": held, "skipped": skipped[-_MOST_SKIPPED:]}, result

        return await self._state.update(_NAME, of_value)


def _current(value: Any, now: float) -> tuple[_Held, list[Any]]:
    """Return copies of what is held and skipped still."""
    known = value or {"held": {}, "skipped": []}
    held = {id: one for id, one in known["held"].items() if one[2] > now}
    return held, [one for one in known["skipped"] if one[3] > now]
