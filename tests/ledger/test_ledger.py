"""Rows of the ledger stay: in order, after a kill, against changes."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from fixtures.waiting import beside
from sqlalchemy.exc import DBAPIError

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.ledger import AlreadyRecorded, Ledger, LedgerRow, LedgerUnavailable
from smallfirst.ledger.rows import AttemptRow, AuditRow, FeedbackRow, StateRow

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def answer(id: str, **values: object) -> LedgerRow:
    given = {
        "id": id, "at": NOON, "served_name": "routed", "status": 200, "latency_ms": 10.0, "stage": "small",
        "certified": True, "prompt_tokens": 5, "completion_tokens": 1, "cost_usd": 0.25,
    }  # fmt: skip
    return LedgerRow.model_validate({**given, **values})


def pragma(ledger: Ledger, text: str) -> Any:
    with ledger.database.writer.connect() as only:
        return only.connection.execute(f"PRAGMA {text}").fetchone()  # type: ignore[attr-defined]


def test_what_was_appended_is_read_back_unchanged_even_after_closing(place: Path | str) -> None:
    row = answer(
        "a",
        error_code="x",
        answered_by="m",
        confidence=0.5,
        threshold=0.25,
        request_sha256="f" * 64,
        request_text="[]",
        answer_text="café",
    )
    ledger = Ledger(place)
    ledger.append(row)
    assert ledger.rows() == (row,)
    ledger.close()
    ledger.close()
    again = Ledger(place)
    assert again.get("a") == row
    assert again.get("b") is None
    again.close()


def test_rows_come_in_order_of_writing_from_a_moment_on_and_the_newest_if_limited(place: Path | str) -> None:
    ledger = Ledger(place)
    tokyo = timezone(timedelta(hours=9))
    for hour, id in enumerate("abcd"):
        ledger.append(answer(id, at=(NOON + timedelta(hours=hour)).astimezone(tokyo)))
    assert [row.id for row in ledger.rows()] == ["a", "b", "c", "d"]
    assert [row.id for row in ledger.rows(since=NOON + timedelta(hours=1))] == ["b", "c", "d"]
    assert [row.id for row in ledger.rows(limit=2)] == ["c", "d"]
    within = ledger.scan(LedgerRow, NOON + timedelta(hours=1), NOON + timedelta(hours=3), served_name="routed")
    assert [row.id for row in within] == ["b", "c"]
    assert ledger.rows()[0].at == NOON
    ledger.close()


def test_rows_can_be_neither_changed_nor_deleted_nor_doubled(place: Path | str) -> None:
    ledger = Ledger(place)
    ledger.append(answer("a"))
    with pytest.raises(AlreadyRecorded, match="has such a row already"):
        ledger.append(answer("a"))
    ledger.append(AttemptRow(id="a", at=NOON, endpoint="http://x/v1", model="big", outcome="timeout", latency_ms=1.0))
    for change in ("DELETE FROM answers", "UPDATE answers SET cost_usd = 0", "UPDATE attempts SET cost_usd = 0"):
        with pytest.raises(DBAPIError, match="the ledger is append-only"), ledger.database.writer.begin() as other:
            other.exec_driver_sql(change)
    assert len(ledger.rows()) == 1
    ledger.close()


async def test_rows_from_many_threads_and_an_event_loop_all_arrive(place: Path | str) -> None:
    ledger = Ledger(place)

    def append_some(prefix: str) -> None:
        for number in range(20):
            ledger.append(answer(f"{prefix}{number}"))

    with beside(append_some, "x", "y", "z"):
        await asyncio.gather(*(ledger.append_async(answer(f"loop{n}")) for n in range(20)))
    ids = [row.id for row in ledger.rows()]
    assert len(ids) == 80
    assert [id for id in ids if id.startswith("loop")] == [f"loop{n}" for n in range(20)]
    ledger.close()


async def test_a_row_is_written_with_its_text_even_if_the_one_who_waits_is_cancelled(
    place: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(place)
    busy = threading.Event()
    ledger._writer._thread.submit(busy.wait)  # the row has to queue behind this
    monkeypatch.setattr("smallfirst.ledger.ledger._redacted", lambda text: time.sleep(0.2) or text)  # before it queues
    waiting = asyncio.create_task(ledger.append_async(answer("a", answer_text="said")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    busy.set()
    ledger.close()
    assert [(row.id, row.answer_text) for row in Ledger(place).rows()] == [("a", "said")]


async def test_rows_that_come_together_share_a_transaction_and_a_doubled_one_fails_alone(place: Path | str) -> None:
    ledger = Ledger(place)
    ledger.append(answer("a"))
    rows = (answer(id) for id in ("b", "a", "c"))
    results = await asyncio.gather(*map(ledger.append_async, rows), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), AlreadyRecorded, type(None)]
    assert [row.id for row in ledger.rows()] == ["a", "b", "c"]
    ledger.close()


def test_a_full_disk_is_said_and_rows_are_taken_again_once_there_is_room(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.append(answer("before"))
    pages = pragma(ledger, "page_count")[0]
    pragma(ledger, f"max_page_count = {pages}")  # SQLite's own word for a disk of this size
    text = "x" * 20_000
    with pytest.raises(LedgerUnavailable) as caught:
        ledger.append(answer("lost", served_name=text))
    assert str(caught.value) == (
        f"{tmp_path}/ledger.sqlite takes no row: database or disk is full\n"
        "  next: make room on its disk and see that it can be written to; the next row is tried again"
    )
    pragma(ledger, "max_page_count = 100000")
    ledger.append(answer("after", served_name=text))
    assert [row.id for row in ledger.rows()] == ["before", "after"]
    ledger.close()


def test_a_ledger_is_ready_while_rows_can_be_written_and_leaves_none_behind(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.append(answer("a"))
    asyncio.run(ledger.ready())
    assert len(ledger.rows()) == 1
    pragma(ledger, "query_only = 1")
    with pytest.raises(LedgerUnavailable, match="readonly"):
        asyncio.run(ledger.ready())
    pragma(ledger, "query_only = 0")
    asyncio.run(ledger.ready())
    ledger.close()


KILLED_IN_A_CROWD = """
import asyncio, os, signal, sys
from pathlib import Path
from datetime import UTC, datetime
from smallfirst.ledger.ledger import AlreadyRecorded, Ledger, LedgerRow
ledger = Ledger(sys.argv[1])
n_written = 0
async def one(n):
    global n_written
    row = LedgerRow(id=f"r{n}", at=datetime.now(UTC), served_name="m", status=200, latency_ms=1.0)
    await ledger.append_async(row)
    os.write(1, f"r{n}\\n".encode())
    n_written += 1
    if n_written == 150:
        os.kill(os.getpid(), signal.SIGKILL)
async def main():
    await asyncio.gather(*(one(n) for n in range(400)))
asyncio.run(main())
"""


def test_no_row_that_was_promised_to_a_crowd_is_lost_when_the_process_is_killed(place: Path | str) -> None:
    command = [sys.executable, "-c", KILLED_IN_A_CROWD, str(place)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    told = killed.stdout.split()
    assert len(told) == 150
    ledger = Ledger(place)
    assert set(told) <= {row.id for row in ledger.rows()}
    ledger.append(answer("after"))
    ledger.close()


def test_a_file_that_is_no_ledger_is_refused_with_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, not a database, and they are long enough " * 20)
    with pytest.raises(ConfigError) as caught:
        Ledger(path)
    assert str(caught.value) == (
        f"{path} cannot be used as a ledger: file is not a database\n  next: choose another path for the ledger"
    )


def test_an_answer_and_its_attempts_are_written_together_or_not_at_all(place: Path | str) -> None:
    ledger = Ledger(place)
    lost, paid = (
        AttemptRow(id="a", at=NOON, endpoint="http://x/v1", model="big", outcome=outcome, cost_usd=cost, latency_ms=1.0)
        for outcome, cost in (("timeout", None), ("answered", 0.25))
    )
    ledger.append(lost, paid, answer("a"))
    with pytest.raises(AlreadyRecorded):
        ledger.append(paid, answer("a"))
    assert ledger.entries(AttemptRow, id="a") == (lost, paid)
    ledger.close()


def test_the_time_for_which_servers_of_one_host_ran_counts_once(place: Path | str) -> None:
    ledger = Ledger(place)
    minute = timedelta(minutes=1)
    ledger.note_uptime(NOON - minute, NOON + minute)
    ledger.note_uptime(NOON, NOON + 2 * minute)  # another server: one minute is new
    ledger.note_uptime(NOON, NOON + minute)
    ledger.note_uptime(NOON, NOON + minute, machine="gpu")
    assert ledger.uptime() == pytest.approx({"": 180, "gpu": 60}, abs=1e-3)
    assert ledger.uptime(NOON, NOON + minute) == pytest.approx({"": 120, "gpu": 60}, abs=1e-3)
    assert ledger.uptime(until=NOON) == pytest.approx({"": 60}, abs=1e-3)
    ledger.close()


def test_what_the_large_model_cost_in_audits_of_certified_answers(place: Path | str) -> None:
    ledger = Ledger(place)
    ledger.append(answer("a"), answer("b", certified=False), answer("c"))
    audit = {"at": NOON, "task": "t", "certificate": "c", "propensity": 0.5, "wrong": False, "cost_usd": 0.3}
    for id, judge in (("a", "large"), ("b", "large"), ("c", "person")):
        ledger.append(AuditRow.model_validate({**audit, "id": id, "judged_by": judge}))
    with pytest.raises(AlreadyRecorded):  # a verdict is final
        ledger.append(AuditRow.model_validate({**audit, "id": "a", "judged_by": "person", "wrong": True}))
    assert ledger.audited_costs() == [("t", 0.5, 0.3)]
    assert ledger.audited_costs(until=NOON) == []
    ledger.close()


def test_entries_of_every_kind_come_back_in_order_and_stay(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    audit = AuditRow(
        id="a", at=NOON, task="t", certificate="c", propensity=0.1, wrong=True, judged_by="large", cost_usd=0.5
    )
    said = FeedbackRow(id="a", at=NOON, verdict="wrong", answer="refund")
    change = StateRow(at=NOON, task="t", before="live", after="fallback", why="3 of 20", certificate="c")
    other = audit.model_copy(update={"id": "b", "task": "u"})
    for entry in (audit, said, change, other):
        ledger.append(entry)
    assert ledger.entries(AuditRow) == (audit, other)
    assert ledger.entries(AuditRow, task="u") == (other,)
    assert ledger.entries(AuditRow, task="t", id="b") == ()
    assert ledger.entries(FeedbackRow, id="a") == (said,)
    assert ledger.entries(StateRow, limit=1) == (change,)
    with pytest.raises(KeyError, match="1=1 OR task"):
        ledger.entries(AuditRow, **{"1=1 OR task": "x"})
    for table in ("audits", "feedback", "states"):
        for order in (f"DELETE FROM {table}", f"UPDATE {table} SET at = at"):
            with pytest.raises(DBAPIError, match="append-only"), ledger.database.writer.begin() as other_hand:
                other_hand.exec_driver_sql(order)
    ledger.close()
