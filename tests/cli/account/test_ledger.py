"""`smallfirst ledger`: what is printed of a ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from smallfirst.cli.main import STAGES
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import ExpenseRow, LedgerRow
from tests.fixtures.cli import call

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def test_it_says_what_a_ledger_holds(tmp_path: Path) -> None:
    assert "ledger" in STAGES["account"]
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    ledger.append(LedgerRow(id="a", at=NOON, served_name="t", status=200, latency_ms=1.0, cost_usd=0.25, task="t"))
    ledger.append(ExpenseRow(id="run", at=NOON, task="t", kind="training", cost_usd=2.0))
    ledger.close()
    told = call("ledger", "info", "--ledger", str(path)).output
    assert told.startswith(f"{path}: 2026-11-27 to 2026-11-27 (UTC)\n")
    assert "answer                    1  $0.2500" in told
    found = json.loads(call("ledger", "info", "--ledger", str(path), "--json").output)
    assert found["kinds"]["training"] == {"n": 1, "cost_usd": 2.0}
