"""Texts are kept redacted, for so many days, apart from the rows, and their bytes are gone afterwards."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smallfirst.ledger.database import BODIES
from smallfirst.ledger.ledger import MAX_CHARACTERS, Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow

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


def test_a_text_is_written_with_its_row_even_if_the_one_who_waits_is_cancelled(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")

    async def leave() -> None:
        waiting = asyncio.create_task(ledger.append_async(with_texts("a", "asked", "said")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(leave())
    assert [row.answer_text for row in ledger.rows()] == ["said"]
    ledger.close()
