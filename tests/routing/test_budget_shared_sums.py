"""Sums of several processes: every amount counts once for all, and none that could not be told is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from smallfirst.ledger.ledger import Ledger, LedgerAway
from smallfirst.routing.budget import SharedSums


def test_amounts_of_all_count_once_and_never_below_nothing(tmp_path: Path) -> None:
    state, (first, second) = Ledger(tmp_path / "ledger.db").shared, (SharedSums(), SharedSums())
    first.add("kept", 3)
    first.add("reserve", -5)
    second.add("kept")
    second.add("reserve", 2)
    for sums in (first, second, first, second):
        asyncio.run(sums.share(state, "tickets"))
    assert {(sums["kept"], sums["reserve"], sums["other"]) for sums in (first, second)} == {(4, 2, 0)}
    first.add("reserve", -9)
    assert first["reserve"] == 0


def test_what_could_not_be_told_is_told_later(tmp_path: Path) -> None:
    class Away:
        async def update(self, name: str, change: Any) -> Any:
            sums.add("kept")  # while it was tried
            raise LedgerAway("no connection")

    sums, state = SharedSums(), Ledger(tmp_path / "ledger.db").shared
    sums.add("kept", 2)
    with pytest.raises(LedgerAway):
        asyncio.run(sums.share(Away(), "tickets"))
    assert sums["kept"] == 3
    asyncio.run(sums.share(state, "tickets"))
    assert state.get("tickets") == {"kept": 3}
