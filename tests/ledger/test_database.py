"""Where a ledger may be: another format is refused, and a URL's password is neither asked for in the open nor shown."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.base.paths import ledger_at, ledger_place
from smallfirst.ledger.database import ABOUT
from smallfirst.ledger.ledger import Ledger, LedgerRow, LedgerUnavailable, open_existing
from tests.fixtures.postgresql import new_database

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ROW = LedgerRow(id="new", at=NOON, served_name="routed", status=200, latency_ms=10.0, task="tickets", cost_usd=0.25)


def test_a_ledger_of_another_format_is_refused_and_left_as_it_is(place: Path | str) -> None:
    ledger = Ledger(place)
    ledger.append(ROW)
    assert ledger.get("x\0") is None  # PostgreSQL's texts have no NUL
    assert ledger.sums(task="x\0") == ()
    with ledger.database.writer.begin() as connection:
        connection.execute(ABOUT.update().values(format=17))
    ledger.close()
    with pytest.raises(ConfigError, match=r"of another version of smallfirst \(format 17, this one reads 1\)"):
        Ledger(place)


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
