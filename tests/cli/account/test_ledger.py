"""`smallfirst ledger`: what is printed of a ledger, and where its rows go."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smallfirst.cli.main import STAGES
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import ExpenseRow, LedgerRow
from tests.fixtures.cli import call, failed

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with an answer and an expense."""
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.append(LedgerRow(id="a", at=NOON, served_name="t", status=200, latency_ms=1.0, cost_usd=0.25, task="t"))
    ledger.append(ExpenseRow(id="run", at=NOON, task="t", kind="training", cost_usd=2.0))
    ledger.close()
    return tmp_path / "ledger.db"


def test_it_says_what_a_ledger_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ledger" in STAGES["account"]
    told = call("ledger", "info", "--ledger", path).output
    assert told.startswith(f"{path}: 2026-11-27 to 2026-11-27 (UTC)\n")
    assert "answer                    1  $0.2500" in told
    monkeypatch.setenv("SMALLFIRST_LEDGER", str(path))
    found = json.loads(call("ledger", "info", "--json").output)
    assert found["kinds"]["training"] == {"n": 1, "cost_usd": 2.0, "n_without_row": 0}


def test_rows_are_exported_copied_and_expired(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    assert call("ledger", "export", out, "--since", "2026-11-27", "--ledger", path).output == f"1 answers in {out}\n"
    assert call("ledger", "export", out, "--until", "2026-11-27", "--ledger", path).output == f"0 answers in {out}\n"
    copied = call("ledger", "copy", path, tmp_path / "copy.db")
    assert copied.output.endswith(f"next: smallfirst serve --ledger {tmp_path / 'copy.db'}\n")
    expired = call("ledger", "expire", "--keep-rows-days", "20000", "--rows-to", tmp_path, "--ledger", path)
    assert expired.output == "0 rows deleted\n"


def test_a_password_in_a_command_line_is_refused(path: Path) -> None:
    told = failed(call("ledger", "info", "--ledger", "postgresql://ada:s3cret@localhost/books"), 2)
    assert "set PGPASSWORD" in told
    assert "s3cret" not in told
