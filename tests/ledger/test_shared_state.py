"""Values that processes share: no change is lost when several are made at once, and a frozen one holds nobody up."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fixtures.waiting import beside

from smallfirst.ledger.ledger import Ledger, LedgerAway


def count(value: Any, _: float) -> tuple[int, int]:
    return (value or 0) + 1, value or 0


def test_values_that_several_replace_at_once_count_every_change(place: Path | str) -> None:
    ledgers = [Ledger(place) for _ in range(3)]
    seen: list[int] = []

    def work(ledger: Ledger) -> None:
        seen.extend(ledger.shared.replace("n", count) for _ in range(30))

    with beside(work, *((ledger,) for ledger in ledgers * 2)):
        pass
    assert sorted(seen) == list(range(180))
    state = ledgers[0].shared
    assert (state.get("n"), state.version("n"), state.get("other"), state.version("other")) == (180, 180, None, 0)
    assert asyncio.run(state.update("n", lambda value, _: (value, "same"))) == "same"
    assert state.version("n") == 180
    for ledger in ledgers:
        ledger.close()


def test_a_process_that_is_frozen_amid_a_change_holds_no_other_up(postgresql: str) -> None:
    from fixtures.postgresql import new_database

    place = new_database(postgresql)
    first, second = Ledger(place), Ledger(place)
    tries: list[Any] = []

    def frozen(value: Any, now: float) -> tuple[Any, None]:
        if not tries:
            second.shared.replace("n", count)  # while the first stands still
        tries.append(value)
        return [*(value if isinstance(value, list) else []), now], None

    first.shared.replace("n", frozen)
    assert tries == [None, 1]
    assert first.shared.get("n")[0] > 1.7e9  # the time of the database, in seconds since 1970
    for ledger in (first, second):
        ledger.close()


def test_without_its_database_a_value_is_not_there(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.database.close()
    (tmp_path / "ledger.db").unlink()
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(LedgerAway, match="takes no value"):
        ledger.shared.replace("n", count)
