"""Where a ledger may be: old files are brought up, and a URL's password is neither asked for in the open nor shown."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.models.protocol import RouteStep
from smallfirst.paths import ledger_at, ledger_place
from smallfirst.serving.ledger import database
from smallfirst.serving.ledger.ledger import Ledger, LedgerRow, LedgerUnavailable, open_existing
from smallfirst.serving.ledger.rows import DraftRow, StateRow
from tests.fixtures.postgresql import new_database

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ROW = LedgerRow(id="new", at=NOON, served_name="routed", status=200, latency_ms=10.0, task="tickets", cost_usd=0.25)

FORMAT_1 = """
CREATE TABLE answers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, served_name TEXT NOT NULL,
    status INTEGER NOT NULL, latency_ms REAL NOT NULL, error_code TEXT, answered_by TEXT, stage TEXT,
    certified INTEGER, confidence REAL, threshold REAL, prompt_tokens INTEGER, completion_tokens INTEGER,
    cost_usd REAL, request_sha256 TEXT, request_text TEXT, answer_text TEXT
);
INSERT INTO answers (id, at, served_name, status, latency_ms)
    VALUES ('old', '2026-01-02T12:00:00.000000+00:00', 'routed', 200, 3.0);
PRAGMA user_version = 1;
"""


FORMAT_3 = """
ALTER TABLE answers ADD COLUMN task TEXT;
ALTER TABLE answers ADD COLUMN trail TEXT;
ALTER TABLE answers ADD COLUMN promise TEXT;
ALTER TABLE answers ADD COLUMN audit_share REAL;
ALTER TABLE answers ADD COLUMN audited INTEGER NOT NULL DEFAULT 0;
ALTER TABLE answers ADD COLUMN first_token_ms REAL;
CREATE TABLE states (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, task TEXT NOT NULL, before TEXT NOT NULL,
    after TEXT NOT NULL, why TEXT NOT NULL, certificate TEXT NOT NULL
);
PRAGMA user_version = 3;
"""


def test_a_ledger_of_the_first_format_is_brought_up_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as old:
        old.executescript(FORMAT_1)
    old.close()
    ledger = Ledger(path)
    ledger.append(ROW.model_copy(update={"trail": '[{"stage":"small","decision":"kept","why":"sure"}]'}))
    ledger.close()
    rows = Ledger(path).rows()
    assert [(row.id, row.task) for row in rows] == [("old", None), ("new", "tickets")]
    assert rows[0].steps == ()
    assert rows[1].steps == (RouteStep(stage="small", decision="kept", why="sure"),)


def test_a_ledger_of_format_15_keeps_its_drafts_and_takes_their_texts(tmp_path: Path) -> None:
    path, draft = tmp_path / "ledger.db", DraftRow(id="old", at=NOON, task="tickets", certificate="c", epoch=1)
    ledger = Ledger(path)
    ledger.append(draft)
    ledger.close()
    with sqlite3.connect(path) as old:
        for column in ("draft", "other"):
            old.execute(f"ALTER TABLE drafts DROP COLUMN {column}")
        old.execute("UPDATE about SET format = 15")
        old.execute("PRAGMA user_version = 15")
    old.close()
    ledger = Ledger(path)
    new = draft.model_copy(update={"id": "new", "draft": "refund", "other": "delivery"})
    ledger.append(new)
    assert ledger.entries(DraftRow) == (draft, new)
    ledger.close()
    with closing(sqlite3.connect(path)) as kept:
        assert kept.execute("SELECT draft, other FROM drafts").fetchall() == [(None, None)] * 2


def test_what_was_promised_in_a_ledger_of_the_third_format_is_its_guarantee(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as old:
        old.executescript(FORMAT_1 + FORMAT_3)
        columns = "(id, at, served_name, status, latency_ms, promise)"
        old.execute(f"INSERT INTO answers {columns} VALUES ('a', ?, 'm', 200, 1.0, 'at most 5 %')", (NOON.isoformat(),))
        columns = "(at, task, before, after, why, certificate)"
        old.execute(f"INSERT INTO states {columns} VALUES (?, 't', '', 'live', 'begun', 'c')", (NOON.isoformat(),))
    old.close()
    ledger = Ledger(path)
    assert [row.guarantee for row in ledger.rows()] == [None, "at most 5 %"]
    assert [(row.after, row.cause) for row in ledger.entries(StateRow)] == [("live", "")]
    ledger.close()


def test_the_sums_of_an_old_ledger_are_made_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    for id in "abc":
        ledger.append(ROW.model_copy(update={"id": id}))
    ledger.close()
    with closing(sqlite3.connect(path)) as old:
        for table in ("sums", "sum_groups", "latencies", "machine_hours", "about"):
            old.execute(f"DROP TABLE {table}")
        old.execute("PRAGMA user_version = 11")
    for _ in range(2):
        ledger = Ledger(path)
        (found,) = ledger.sums(by=("task", "outcome"))
        assert (found.task, found.outcome, found.n, found.cost_usd) == ("tickets", "answered", 3, 0.75)
        assert sum(found.latency_ms_buckets.values()) == 3
        ledger.close()


def test_a_password_comes_from_the_environment_and_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psycopg")
    place = "postgresql://ada@127.0.0.1:9/books?password_env=BOOKS_PASSWORD"
    with pytest.raises(ConfigError, match="the environment variable BOOKS_PASSWORD is not set"):
        Ledger(place)
    monkeypatch.setenv("BOOKS_PASSWORD", "s3cret")
    for url in (place, "postgresql://ada:s3cret@127.0.0.1:9/books"):
        with pytest.raises(ConfigError, match="cannot be used as a ledger") as caught:
            Ledger(url)
        assert "s3cret" not in str(caught.value)
        assert "***@127.0.0.1" in str(caught.value)
    assert "s3cret" not in "".join(capfd.readouterr())
    for wrong in ("mysql://ada@127.0.0.1/books", "postgresql://[x"):
        with pytest.raises(ConfigError, match="cannot be used as a ledger"):
            Ledger(wrong)


def test_a_server_that_is_gone_is_said_and_rows_are_taken_again_when_it_is_back(postgresql: str) -> None:
    import psycopg

    ledger = Ledger(url := new_database(postgresql))
    ledger.append(ROW)
    with psycopg.connect(postgresql.format("postgres"), autocommit=True) as other:
        ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        name = url.partition("@/")[2].partition("?")[0]
        other.execute(ends, [name])
        ledger.append(ROW.model_copy(update={"id": "again"}))  # a new connection
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        other.execute(ends, [name])
        with pytest.raises(LedgerUnavailable, match="takes no row"):
            ledger.append(ROW.model_copy(update={"id": "lost"}))
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        ledger.append(ROW.model_copy(update={"id": "later", "served_name": "a\0b"}))
    assert [(row.id, row.served_name) for row in ledger.rows()][1:] == [("again", "routed"), ("later", "a\ufffdb")]
    ledger.close()


def test_the_ledger_is_that_of_the_option_else_of_the_environment_else_of_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    assert ledger_place() == tmp_path / "ledger.db"
    assert open_existing() is None
    monkeypatch.setenv("SMALLFIRST_LEDGER", "postgresql://ada@books/ledger")
    assert ledger_place() == "postgresql://ada@books/ledger"
    with ledger_at("other.db"):
        assert ledger_place() == Path("other.db")


def test_a_column_that_a_later_version_adds_has_its_default_in_old_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as old:
        old.execute("ALTER TABLE sums DROP COLUMN draft_usd")
        old.execute(f"PRAGMA user_version = {database.FORMAT - 1}")
    ledger = Ledger(path)
    ledger.append(ROW)
    assert ledger.sums()[0].draft_usd == 0.0
    ledger.close()
