"""Several processes over one ledger: each change of state is found once, written once, and in force in all of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deployment.test_audited_router import Setting

from smallfirst.deployment.followed_monitor import FollowedMonitor
from smallfirst.errors import ModelError
from smallfirst.models.protocol import Request
from smallfirst.routing.budget import Budget, BudgetTracker
from smallfirst.routing.monitoring.audit_plan import SAVING
from smallfirst.routing.monitoring.monitor import Monitor, MonitorSettings, StateChange
from smallfirst.routing.monitoring.quantities import Quantity
from smallfirst.serving.ledger.ledger import Ledger, LedgerAway, LedgerUnavailable
from smallfirst.serving.ledger.rows import AuditRow, StateRow

QUANTITY = Quantity("error", 0.05, "at most 5 % of kept answers wrong")


def monitor(**settings: Any) -> Monitor:
    chosen = MonitorSettings.model_validate({"on_drift": "fallback", **settings})
    return Monitor(chosen, quantities=[QUANTITY], reference_confidence=[0.9, 0.92, 0.94, 0.96] * 100)


def follower(ledger: Ledger, new: Callable[[], Monitor] = monitor) -> FollowedMonitor:
    return FollowedMonitor(new(), ledger, "tickets", "c", why="13 of 720 wrong", shadow_why="")


def audit(id: str, *, wrong: bool, **values: Any) -> AuditRow:
    known = {"at": datetime.now(UTC), "task": "tickets", "certificate": "c", "propensity": 1.0, "judged_by": "large"}
    return AuditRow.model_validate({"id": id, "wrong": wrong, **known, **values})


def drifted(of: FollowedMonitor) -> StateChange:
    """A drift as `Monitor.observe` finds it."""
    known = {"at_request": 9, "before": of.monitor.state, "after": "fallback", "cause": "confidence"}
    return StateChange.model_validate({**known, "why": "the requests have changed", "values": {}})


def seen(one: FollowedMonitor) -> tuple[Any, ...]:
    """All that a monitor knows from the ledger."""
    of = one.monitor
    tests = [(watch.exceeded, watch.test.e_value) for watch in of.watches]
    recoveries = [(test.n, test.e_value) for test in of._recoveries]
    return of.state, one.cause, of._since_alarm[True].since, of.live_error, tests, recoveries, one.since


def changes(ledger: Ledger) -> list[tuple[str, str, str]]:
    return [(row.before, row.after, row.cause) for row in ledger.entries(StateRow)]


def test_an_alarm_of_one_process_stops_the_small_model_in_all_and_is_written_once(place: Path | str) -> None:
    ledgers = [Ledger(place) for _ in range(3)]
    first, second, third = settings = [Setting(ledger) for ledger in ledgers]
    second.small.asked, third.small.asked = 1_000, 2_000  # ids of their own
    assert second.changes == [("", "live")]

    async def work() -> None:
        first.small.wrong = True
        await first.ask(8)
        assert first.live.monitor.state == "fallback"
        await asyncio.gather(*(one.live._followed.follow() for one in settings))
        assert [one.live.paused for one in settings] == ["the guarantee was found broken on live answers"] * 3
        assert (await second.ask())[0].answered_by == "large"
        first.small.wrong = False
        while third.live.monitor.state != "live":  # its audits bring the guarantee back for all
            await third.ask(20)
        await asyncio.gather(*(one.live._followed.follow() for one in settings))

    asyncio.run(work())
    assert first.changes == [("", "live"), ("live", "fallback"), ("fallback", "live")]
    again = Setting(ledgers[0])
    assert {one.live.monitor.state for one in (*settings, again)} == {"live"}
    assert len({seen(one.live._followed)[3].model_dump_json() for one in (*settings, again)}) == 1
    for ledger in ledgers:
        ledger.close()


def test_budget_and_reserve_are_one_for_all_and_outlast_a_restart(place: Path | str) -> None:
    ledgers = [Ledger(place) for _ in range(2)]

    def opened(ledger: Ledger) -> Setting:
        setting = Setting(ledger, audit_share=0.5)
        setting.live.router.budget_tracker = BudgetTracker(Budget(usd=2.0))
        return setting

    async def work() -> None:
        first, second = map(opened, ledgers)
        await first.ask(3)
        assert first.live.router.budget_tracker is not None
        first.live.router.budget_tracker.pay(1.5)
        first.live.monitor.sums.add("reserve", 200)
        await first.live.aclose()
        await second.live.follow()
        for one in (second, opened(ledgers[0])):
            await one.live.follow()
            assert one.live.monitor.audit_share == 0.5 * (1 - SAVING)  # nothing of the reserve is left
            purse = one.live.router.budget_tracker
            assert purse is not None
            assert (purse.allows(0.4), purse.allows(0.6)) == (True, False)

    asyncio.run(work())
    for ledger in ledgers:
        ledger.close()


@pytest.mark.parametrize("seed", range(5))
def test_whoever_writes_what_and_reads_when_all_agree_with_a_process_that_reads_all_at_once(
    tmp_path: Path, seed: int
) -> None:
    """Audits and drifts by four processes of which each reads now and then."""
    draw, ledger = random.Random(seed), Ledger(tmp_path / "ledger.db")
    followers = [follower(ledger) for _ in range(4)]

    async def work() -> None:
        for n in range(120):
            one = draw.choice(followers)
            bad = n % 60 < 24
            late = {"answered_at": datetime.now(UTC) - timedelta(seconds=draw.random() < 0.1)}
            ledger.append(audit(f"a{n}", wrong=draw.random() < (0.5 if bad else 0.01), **late))
            if draw.random() < 0.02:
                await one.found([drifted(one)])
            if draw.random() < 0.3:
                await draw.choice(followers).follow()
        for one in followers:
            await one.follow()

    asyncio.run(work())
    assert len({repr(seen(one)) for one in (*followers, follower(ledger))}) == 1
    rows = [(row.cause, row.after_audit) for row in ledger.entries(StateRow)]
    assert len(rows) == len(set(rows))
    ledger.close()


def test_a_drift_that_one_process_finds_is_in_force_in_all_and_keeps_its_place(place: Path | str) -> None:
    ledgers = [Ledger(place), Ledger(place)]
    one, other = map(follower, ledgers)

    async def work() -> None:
        ledgers[0].append(*(audit(f"a{n}", wrong=False) for n in range(3)))
        await one.found([drifted(one)])
        ledgers[0].append(*(audit(f"b{n}", wrong=n == 0) for n in range(5)))
        before = datetime.now(UTC) - timedelta(hours=1)
        ledgers[0].append(audit("late", wrong=True, answered_at=before))  # of an answer from before the drift
        for each in (one, other):
            await each.follow()

    asyncio.run(work())
    assert seen(one) == seen(other) == seen(follower(ledgers[1]))
    assert (other.monitor.state, other.cause, other.monitor.live_error.n) == ("fallback", "confidence", 5)
    assert [alarm.cause for alarm in other.monitor.alarms] == ["confidence"]
    assert changes(ledgers[0]) == [("", "live", ""), ("live", "fallback", "confidence")]
    for ledger in ledgers:
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

    def away(*_: Any) -> Any:
        raise LedgerUnavailable("no connection")

    monkeypatch.setattr(ledger, "watched", away)
    setting.live._followed._read_at_s -= 2
    with pytest.raises(LedgerAway, match="no connection"):
        asyncio.run(setting.live.complete(Request.ask("hi")))
    monkeypatch.undo()
    assert setting.small.asked == 1
    asyncio.run(setting.ask())
    assert not issubclass(LedgerAway, ModelError)
    ledger.close()
