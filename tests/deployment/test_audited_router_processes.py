"""Several processes over one ledger: each change of state is found once, written once, and in force in all of them."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deployment.test_audited_router import Setting

from smallfirst.base.errors import ModelError
from smallfirst.deployment.audited_router import Audits
from smallfirst.ledger.ledger import Ledger, LedgerAway, LedgerUnavailable
from smallfirst.ledger.rows import AuditRow, StateRow
from smallfirst.models.protocol import Request
from smallfirst.routing.monitor import Monitor, MonitorSettings, Quantity

ASKED = Request.ask("hi")


def follower(ledger: Ledger) -> Audits:
    quantity = Quantity("error", 0.05, "at most 5 % of kept answers wrong")
    return Audits(Monitor(MonitorSettings(), quantities=[quantity]), ledger, "tickets", "c", why="13 of 720 wrong")


def audit(id: str, *, wrong: bool, **values: Any) -> AuditRow:
    known = {"at": datetime.now(UTC), "task": "tickets", "certificate": "c", "propensity": 1.0, "judged_by": "large"}
    return AuditRow.model_validate({"id": id, "wrong": wrong, **known, **values})


def seen(one: Audits) -> tuple[Any, ...]:
    """All that a monitor knows from the ledger."""
    of = one.monitor
    tests = [(watch.exceeded, watch.test.e_value) for watch in of.watches]
    recoveries = [(test.n, test.e_value) for test in of._recoveries]
    return of.state, of.alarms, of._since, of.live_error, tests, recoveries, one.since


def changes(ledger: Ledger) -> list[tuple[str, str, str]]:
    return [(row.before, row.after, row.cause) for row in ledger.entries(StateRow)]


async def test_an_alarm_of_one_process_stops_the_small_model_in_all_and_is_written_once(place: Path | str) -> None:
    ledgers = [Ledger(place) for _ in range(3)]
    first, second, third = settings = [Setting(ledger) for ledger in ledgers]
    second.small.asked, third.small.asked = [ASKED] * 1_000, [ASKED] * 2_000  # ids of their own
    assert second.changes == [("", "live")]
    first.small.wrong = True
    await first.ask(8)
    assert first.live.monitor.state == "fallback"
    await asyncio.gather(*(one.live.audits.follow() for one in settings))
    assert [one.live.paused for one in settings] == ["the guarantee was found broken on live answers"] * 3
    assert (await second.ask())[0].answered_by == "large"
    first.small.wrong = False
    while third.live.monitor.state != "live":  # its audits bring the guarantee back for all
        await third.ask(20)
    await asyncio.gather(*(one.live.audits.follow() for one in settings))
    assert first.changes == [("", "live"), ("live", "fallback"), ("fallback", "live")]
    again = Setting(ledgers[0])
    assert {one.live.monitor.state for one in (*settings, again)} == {"live"}
    assert len({one.live.monitor.live_error.model_dump_json() for one in (*settings, again)}) == 1
    for ledger in ledgers:
        ledger.close()


@pytest.mark.parametrize("seed", range(5))
async def test_whoever_writes_what_and_reads_when_all_agree_with_a_process_that_reads_all_at_once(
    tmp_path: Path, seed: int
) -> None:
    """Audits by four processes of which each reads now and then."""
    draw, ledger = random.Random(seed), Ledger(tmp_path / "ledger.db")
    followers = [follower(ledger) for _ in range(4)]
    for n in range(120):
        bad = n % 60 < 24
        late = {"answered_at": datetime.now(UTC) - timedelta(seconds=draw.random() < 0.1)}
        ledger.append(audit(f"a{n}", wrong=draw.random() < (0.5 if bad else 0.01), **late))
        if draw.random() < 0.3:
            await draw.choice(followers).follow()
    for one in followers:
        await one.follow()
    assert len({repr(seen(one)) for one in (*followers, follower(ledger))}) == 1
    rows = [(row.cause, row.after_audit) for row in ledger.entries(StateRow)]
    assert len(rows) == len(set(rows))
    ledger.close()


def test_an_alarm_whose_process_was_killed_before_it_wrote_it_is_written_by_the_next(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    follower(ledger)
    ledger.append(*(audit(f"a{n}", wrong=True) for n in range(8)))
    for _ in range(2):
        asyncio.run(follower(ledger).follow())
    assert changes(ledger) == [("", "live", ""), ("live", "fallback", "guarantee")]
    ledger.close()


def test_no_answer_is_decided_on_a_state_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    setting = Setting(ledger)
    asyncio.run(setting.ask())

    def away(*_: Any, **__: Any) -> Any:
        raise LedgerUnavailable("no connection")

    monkeypatch.setattr(ledger, "audits", away)
    setting.live.audits._read_at_s -= 2
    with pytest.raises(LedgerAway, match="no connection"):
        asyncio.run(setting.live.complete(ASKED))
    monkeypatch.undo()
    assert len(setting.small.asked) == 1
    asyncio.run(setting.ask())
    assert not issubclass(LedgerAway, ModelError)
    ledger.close()
