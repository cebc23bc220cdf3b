"""`smallfirst statement`: made, shown and checked on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallfirst.serving.ledger.ledger import Ledger
from tests.billing.test_statement import fill
from tests.fixtures.cli import call, failed


def test_a_month_is_written_shown_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(tmp_path / "ledger.db")
    fill(ledger)
    ledger.close()
    made = call("statement", "--month", "2026-11", "--ledger", "ledger.db")
    assert made.exit_code == 0, made.output
    assert "answers of small models     20  $0.20" in made.output
    assert "t: saved −$0.210 (95 %: −$0.210 to −$0.210): measured on 20 of them" in made.output
    assert "wrote statement-2026-11/statement.html, rows.csv and statement.json" in made.output
    key = call("statement", "--public-key").output.strip()
    told = call("statement", "--verify", "statement-2026-11", "--public-key", key).output
    assert "statement-2026-11: 42 rows, all figures and the signature fit together\n" in told
    assert f"signed by {key}" in call("statement", "--verify", "statement-2026-11").output
    own = call(
        "statement", "--verify", "statement-2026-11", "--against-ledger", "--ledger", "ledger.db", "--public-key"
    )
    assert "and with the ledger" in own.output
    read = json.loads(call("statement", "--verify", "statement-2026-11", "--json").stdout)
    assert read["figures"]["savings"][0]["n_small"] == 20
    rows = tmp_path / "statement-2026-11" / "rows.csv"
    rows.write_text(rows.read_text().replace(",0.01,", ",0.001,", 1))
    assert "answer s0 was changed" in failed(call("statement", "--verify", "statement-2026-11"), 2)


def test_without_a_ledger_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    assert "no such ledger" in failed(call("statement", "--month", "2026-11"), 2)
