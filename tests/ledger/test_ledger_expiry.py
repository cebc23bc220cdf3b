"""Rows that leave the ledger: exported, expired, copied to another database; their sums stay."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AttemptRow, AuditRow, LedgerRow, StateRow
from tests.fixtures.postgresql import new_database

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def fill(ledger: Ledger, first: datetime = NOON) -> None:
    """Three answers on three days, with an attempt and an audit each."""
    for day, id in enumerate("abc"):
        at = first + timedelta(days=day)
        answer = LedgerRow(
            id=id, at=at, served_name="t", status=200, latency_ms=5.0, task="t", cost_usd=0.25, certified=True,
            answer_text=f"said {id}",
        )  # fmt: skip
        attempt = AttemptRow(id=id, at=at, endpoint="http://x", model="m", outcome="answered", latency_ms=1.0)
        audit = AuditRow(id=id, at=at, task="t", certificate="c", propensity=1, wrong=False, judged_by="large")
        ledger.append(attempt, answer, audit)
    ledger.append(StateRow(at=NOON, task="t", before="", after="live", why="begun", certificate="c"))


def test_old_rows_go_after_they_were_exported_and_sums_audits_and_newer_rows_stay(
    place: Path | str, tmp_path: Path
) -> None:
    ledger = Ledger(place)
    fill(ledger)
    before, cut = ledger.sums(every="day", outcome="answered"), NOON + timedelta(days=1, hours=1)
    assert ledger.expire_rows(cut, export_to=tmp_path / "old") == 4
    assert [row.id for row in ledger.rows()] == ["c"]
    assert len(ledger.entries(AuditRow)) == 3
    assert ledger.sums(every="day", outcome="answered") == before
    with (tmp_path / "old" / "answers-before-2026-11-28.csv").open() as file:
        assert [(row["id"], row["cost_usd"], row["answer_text"]) for row in csv.DictReader(file)] == [
            ("a", "0.25", ""),
            ("b", "0.25", ""),
        ]
    assert ledger.expire_rows(cut, export_to=tmp_path / "old") == 0
    ledger.append(LedgerRow(id="late", at=NOON, served_name="t", status=499, latency_ms=1.0))
    assert ledger.expire_rows(cut, export_to=tmp_path / "old") == 1
    assert "late" in (tmp_path / "old" / "answers-before-2026-11-28-2.csv").read_text()
    with pytest.raises(Exception, match="append-only"), ledger.database.writer.begin() as other:
        other.exec_driver_sql("DELETE FROM answers")
    ledger.close()


def test_a_server_lets_rows_go_that_are_older_than_the_days_before_the_newest(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", keep_rows_days=1, export_to=tmp_path)
    fill(ledger, datetime.now(UTC) - timedelta(days=10))  # nothing since: the newest row says which day it is
    ledger.start()
    for _ in range(1_000):
        if [row.id for row in ledger.rows()] == ["b", "c"]:
            break
        ledger._closed.wait(0.01)
    assert [row.id for row in ledger.rows()] == ["b", "c"]
    assert len(list(tmp_path.glob("answers-before-*.csv"))) == 1
    ledger.close()


def test_rows_are_exported_without_texts_to_a_file_that_is_whole_or_not_there(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    fill(ledger)
    assert ledger.export(LedgerRow, tmp_path / "a.csv", since=NOON + timedelta(days=1)) == 2
    with (tmp_path / "a.csv").open() as file:
        assert [(row["id"], row["answer_text"]) for row in csv.DictReader(file)] == [("b", ""), ("c", "")]
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OSError, match=r"folder\.csv"):
        ledger.export(LedgerRow, tmp_path / "folder.csv")
    assert not list(tmp_path.glob(".*part"))
    ledger.close()


def test_everything_is_copied_to_postgresql_and_back(postgresql: str, tmp_path: Path) -> None:
    first, second, third = Ledger(tmp_path / "a.db"), Ledger(new_database(postgresql)), Ledger(tmp_path / "b.db")
    fill(first)
    first.note_uptime(NOON, NOON + timedelta(minutes=5))
    found = first.copy_to(second)
    assert (found["answers"], found["audits"], found["bodies"], found["machine_hours"]) == (3, 3, 3, 1)
    second.copy_to(third)
    for other in (second, third):
        assert other.rows() == first.rows()
        assert other.rows()[0].answer_text == "said a"
        assert other.sums(every="hour") == first.sums(every="hour")
        assert other.uptime() == pytest.approx({"": 300})
        other.append(first.rows()[0].model_copy(update={"id": "d"}))
    with pytest.raises(ConfigError, match="has rows already"):
        first.copy_to(second)
    for ledger in (first, second, third):
        ledger.close()
