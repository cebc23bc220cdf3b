"""Texts are kept redacted, for so many days, and their bytes are gone afterwards."""

from __future__ import annotations

import json
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.serving.ledger.body_store import MAX_CHARACTERS, Body, BodyStore
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, FeedbackRow, LedgerRow

ASKED = '[["user", "write to jane@example.com"]]'
NOW = datetime.now(UTC)


@pytest.fixture
def bodies(tmp_path: Path) -> Iterator[BodyStore]:
    opened = BodyStore(tmp_path / "bodies.db", keep_days=30)
    yield opened
    opened.close()


def test_texts_are_found_by_id_without_personal_data(bodies: BodyStore) -> None:
    bodies.put([("chatcmpl-1", Body(ASKED, "her card is 4111 1111 1111 1111"))])
    assert bodies.get(["chatcmpl-1"])["chatcmpl-1"] == Body('[["user", "write to [EMAIL]"]]', "her card is [CARD]")
    assert bodies.get(["chatcmpl-2"]) == {}
    assert stat.S_IMODE(os.stat(bodies.path).st_mode) == 0o600
    bodies.put([("chatcmpl-2", Body(ASKED, None))])
    assert bodies.get(["chatcmpl-2"])["chatcmpl-2"] == Body('[["user", "write to [EMAIL]"]]', None)


def test_what_is_too_old_is_deleted_with_its_bytes(bodies: BodyStore) -> None:
    bodies.put([("old", Body('[["user", "xyzzy-old"]]', "plugh-old"))], at=NOW - timedelta(days=29, hours=23))
    bodies.put([("new", Body('[["user", "xyzzy-new"]]', "plugh-new"))], at=NOW)
    assert b"xyzzy-old" in bodies.path.read_bytes()
    assert bodies.expire(NOW + timedelta(hours=2)) == 1
    assert bodies.get(["old"]) == {}
    assert bodies.get(["new"])
    content = bodies.path.read_bytes()
    assert b"xyzzy-old" not in content
    assert b"plugh-old" not in content
    assert b"xyzzy-new" in content


def test_old_texts_are_not_read_and_go_when_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "bodies.db"
    first = BodyStore(path, keep_days=30)
    first.put([("a", Body('[["user", "xyzzy"]]', "x"))], at=NOW - timedelta(days=31))
    assert first.get(["a"]) == {}
    assert b"xyzzy" in path.read_bytes()
    BodyStore(path, keep_days=30).close()
    assert b"xyzzy" not in path.read_bytes()
    first.close()


def test_requests_delete_nothing_and_share_a_transaction(bodies: BodyStore) -> None:
    statements: list[str] = []
    with bodies._writer.connect() as only:
        only.connection.set_trace_callback(statements.append)  # type: ignore[attr-defined]
    bodies.put([(str(n), Body(ASKED, "x")) for n in range(100)])
    bodies.get(["1", "2"])
    kinds = Counter(statement.split()[0] for statement in statements)
    assert kinds == {"BEGIN": 1, "INSERT": 100, "COMMIT": 1}


@pytest.mark.parametrize("jump", [timedelta(days=3_650), timedelta(days=31), timedelta(days=-3_650)])
def test_a_clock_that_jumps_and_comes_back_deletes_nothing(bodies: BodyStore, jump: timedelta) -> None:
    bodies.put([("a", Body(ASKED, "x"))], at=NOW)
    for minutes in (0, 10, 600):
        passed = timedelta(minutes=minutes)
        assert bodies.expire(NOW + jump + passed, running_s=passed.total_seconds()) == 0
    assert bodies.expire(NOW + timedelta(days=1), running_s=86_400) == 0
    assert bodies.get(["a"])
    assert bodies.expire(NOW + timedelta(days=7), running_s=7 * 86_400) == 0
    assert [bodies.expire(NOW + timedelta(days=day), running_s=day * 86_400) for day in (14, 21, 28, 31)] == [
        0,
        0,
        0,
        1,
    ]


def test_a_clock_that_stays_is_followed_after_a_day(bodies: BodyStore) -> None:
    bodies.put([("a", Body(ASKED, "x"))], at=NOW)
    later = NOW + timedelta(days=60)
    assert bodies.expire(later, running_s=0) == 0
    assert bodies.expire(later + timedelta(hours=23), running_s=23 * 3_600) == 0
    assert bodies.expire(later + timedelta(hours=24), running_s=24 * 3_600) == 1


def test_what_was_written_while_the_clock_was_ahead_is_deleted_as_well(bodies: BodyStore) -> None:
    bodies.put([("a", Body(ASKED, "x"))], at=NOW + timedelta(days=3_650))
    deleted = [bodies.expire(NOW + timedelta(days=day), running_s=day * 86_400) for day in range(0, 35, 7)]
    assert deleted == [0, 0, 0, 0, 0]
    assert bodies.expire(NOW + timedelta(days=31), running_s=31 * 86_400) == 1


def test_a_ledger_deletes_by_a_timer_while_no_text_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger-bodies.db"
    before = BodyStore(path, keep_days=30)
    before.put([("a", Body('[["user", "xyzzy"]]', "x"))], at=NOW - timedelta(days=31))
    before.close()
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.append(LedgerRow(id="a", at=NOW, served_name="m", status=200, latency_ms=1.0))
    assert b"xyzzy" in path.read_bytes()
    ledger.start()
    for _ in range(1_000):
        if b"xyzzy" not in path.read_bytes():
            break
        time.sleep(0.01)
    ledger.close()
    assert b"xyzzy" not in path.read_bytes()


def test_texts_that_are_too_long_are_not_kept(bodies: BodyStore) -> None:
    bodies.put([("long", Body('[["user", "' + "a" * MAX_CHARACTERS + '"]]', "short"))])
    assert bodies.get(["long"])["long"] == Body(None, "short")


def test_what_people_wrote_is_beside_the_ledger_and_not_in_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    at = datetime.now(UTC)
    row = LedgerRow(id="a", at=at, served_name="m", status=200, latency_ms=1.0)
    asked = '[["user","my mail is ada@example.com"]]'
    ledger.append(row.model_copy(update={"request_text": asked, "answer_text": "answer"}))
    audit = {"task": "t", "certificate": "c", "propensity": 1.0, "wrong": False, "judged_by": "large"}
    ledger.append(AuditRow(id="a", at=at, draft="say ada@example.com", other="other", **audit))
    ledger.append(FeedbackRow(id="a", at=at, verdict="wrong", answer="ask ada@example.com"))
    ledger.append(row.model_copy(update={"id": "b"}))
    found = ledger.get("a")
    assert found is not None
    assert found.answer_text == "answer"
    assert json.loads(found.request_text or "")[0][1] != "my mail is ada@example.com"
    (held,) = ledger.entries(AuditRow)
    assert held.other == "other"
    assert held.draft is not None
    assert held.draft.startswith("say ")
    assert ledger.get("b") == row.model_copy(update={"id": "b"})
    ledger.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ada@example.com" not in kept
    assert b"answer" not in (tmp_path / "ledger.db").read_bytes().split(b"CREATE")[-1].replace(b"answers", b"")
    assert (tmp_path / "ledger-bodies.db").exists()


def test_texts_of_the_ledger_are_forgotten_after_their_days(tmp_path: Path) -> None:
    row = LedgerRow(id="a", at=datetime.now(UTC), served_name="m", status=200, latency_ms=1.0, answer_text="answer")
    ledger = Ledger(tmp_path / "ledger.db", keep_bodies_days=0)
    ledger.append(row)
    found = ledger.get("a")
    assert found is not None
    assert found.answer_text is None
    ledger.close()


def test_a_ledger_without_texts_has_no_file_for_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.append(LedgerRow(id="a", at=datetime.now(UTC), served_name="m", status=200, latency_ms=1.0))
    assert len(ledger.rows()) == 1
    ledger.close()
    assert not (tmp_path / "ledger-bodies.db").exists()


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "bodies.db").write_text("not a database, but long enough to be looked at")
    with pytest.raises(ConfigError, match=r"bodies\.db cannot keep texts"):
        BodyStore(tmp_path / "bodies.db")
