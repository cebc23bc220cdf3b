"""What leaves the ledger: texts, redacted and with their bytes, after some days; rows; sums stay."""

import asyncio
import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.database import BODIES
from smallfirst.ledger.ledger import MAX_CHARACTERS, Ledger
from smallfirst.ledger.rows import AttemptRow, AuditRow, FeedbackRow, LedgerRow, StateRow
from tests.fixtures.postgresql import new_database

NOW = datetime.now(UTC)
ROW = LedgerRow(id="a", at=NOW, served_name="m", status=200, latency_ms=1.0)


def with_texts(id: str, asked: str, answer: str | None) -> LedgerRow:
    return ROW.model_copy(update={"id": id, "request_text": asked, "answer_text": answer})


def age(ledger: Ledger, id: str, **days: float) -> None:
    """Make a text older than it is."""
    with ledger.database.writer.begin() as connection:
        connection.execute(BODIES.update().where(BODIES.c.id == f"answers/{id}").values(at=NOW - timedelta(**days)))


def kept(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_texts_are_found_with_their_rows_without_personal_data(place: Path | str) -> None:
    ledger = Ledger(place)
    ledger.append(with_texts("a", '[["user", "write to jane@example.com"]]', "her card is 4111 1111 1111 1111"))
    asyncio.run(ledger.append_async(with_texts("b", "ask ada@example.com", None)))
    audit = {"task": "t", "certificate": "c", "propensity": 1.0, "wrong": False, "judged_by": "large"}
    ledger.append(AuditRow(id="a", at=NOW, draft="say ada@example.com", other="other", **audit))
    ledger.append(FeedbackRow(id="a", at=NOW, verdict="wrong", answer="ask ada@example.com"))
    ledger.append(ROW.model_copy(update={"id": "c"}))
    first, second, third = ledger.rows()
    assert (first.request_text, first.answer_text) == ('[["user", "write to [EMAIL]"]]', "her card is [CARD]")
    assert (second.request_text, second.answer_text) == ("ask [EMAIL]", None)
    assert third == ROW.model_copy(update={"id": "c"})
    (held,) = ledger.entries(AuditRow)
    assert (held.draft, held.other) == ("say [EMAIL]", "other")
    assert ledger.entries(FeedbackRow)[0].answer == "ask [EMAIL]"
    assert [row.answer_text for row in ledger.scan(LedgerRow)] == [None] * 3
    ledger.close()


def test_what_is_too_old_is_not_read_and_deleted_with_its_bytes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", keep_bodies_days=30)
    ledger.append(with_texts("old", "xyzzy-old", "plugh-old"), with_texts("new", "xyzzy-new", "plugh-new"))
    age(ledger, "old", days=29, hours=23)
    assert ledger.expire_bodies() == 0
    age(ledger, "old", days=30, hours=1)
    assert [row.answer_text for row in ledger.rows()] == [None, "plugh-new"]
    assert b"xyzzy-old" in kept(tmp_path)
    assert ledger.expire_bodies() == 1
    assert b"xyzzy-old" not in kept(tmp_path)
    assert b"plugh-old" not in kept(tmp_path)
    assert b"xyzzy-new" in kept(tmp_path)
    ledger.close()


def test_a_server_deletes_by_a_timer_while_no_text_is_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.append(with_texts("old", "xyzzy", "plugh"))
    age(ledger, "old", days=31)
    ledger.start()
    for _ in range(1_000):
        if b"xyzzy" not in kept(tmp_path):
            break
        ledger._closed.wait(0.01)
    ledger.close()
    assert b"xyzzy" not in kept(tmp_path)


@pytest.mark.parametrize("text", ["a" * MAX_CHARACTERS, "b" * (MAX_CHARACTERS + 1)])
def test_texts_that_are_too_long_are_not_kept(tmp_path: Path, text: str) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.append(with_texts("long", text, "short"))
    assert ledger.rows()[0].request_text == (text if len(text) <= MAX_CHARACTERS else None)
    assert ledger.rows()[0].answer_text == "short"
    ledger.close()


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


def test_old_rows_go_and_sums_audits_and_newer_rows_stay(place: Path | str) -> None:
    ledger = Ledger(place)
    fill(ledger)
    before, cut = ledger.sums(every="day", outcome="answered"), NOON + timedelta(days=1, hours=1)
    assert ledger.expire_rows(cut) == 4
    assert [row.id for row in ledger.rows()] == ["c"]
    assert len(ledger.entries(AuditRow)) == 3
    assert ledger.sums(every="day", outcome="answered") == before
    assert ledger.expire_rows(cut) == 0
    with pytest.raises(Exception, match="append-only"), ledger.database.writer.begin() as other:
        other.exec_driver_sql("DELETE FROM answers")
    ledger.close()


def test_a_server_lets_rows_go_that_are_older_than_the_days_before_the_newest(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", keep_rows_days=1)
    fill(ledger, datetime.now(UTC) - timedelta(days=10))  # nothing since: the newest row says which day it is
    ledger.start()
    for _ in range(1_000):
        if [row.id for row in ledger.rows()] == ["b", "c"]:
            break
        ledger._closed.wait(0.01)
    assert [row.id for row in ledger.rows()] == ["b", "c"]
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
