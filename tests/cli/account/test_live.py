"""`smallfirst report --live` prints the report, as words, JSON and page."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from click.testing import CliRunner

from smallfirst.cli.main import main
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import LedgerRow


def test_the_last_day_of_a_task(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("name: t\nkind: classify\ndata: {train: train.jsonl}\n")
    missing = CliRunner().invoke(main, ["report", str(tmp_path), "--live", "24h"])
    assert missing.exit_code == 2
    assert "no such ledger" in missing.output
    ledger = Ledger(tmp_path / ".smallfirst" / "ledger.db")
    ledger.append(LedgerRow(
        id="a", at=datetime.now(UTC), served_name="t", status=200, latency_ms=3.0, task="t", stage="small",
        answered_by="t-small@1 int8", cost_usd=0.0002,
    ))  # fmt: skip
    ledger.close()
    page = tmp_path / "bill.html"
    shown = CliRunner().invoke(main, ["report", str(tmp_path), "--live", "24h", "--html", str(page)])
    assert shown.exit_code == 0, shown.output
    assert "t-small@1 int8" in shown.output
    assert "$0.00020" in shown.output
    assert "t-small@1" in page.read_text()
    told = CliRunner().invoke(main, ["report", str(tmp_path), "--live", "7d", "--json"])
    found = json.loads(told.stdout)
    assert (found["cost_usd"], found["outcomes"]) == (0.0002, {"answered": 1})
    (tmp_path / "task.yaml").write_text("name: other\nkind: classify\ndata: {train: train.jsonl}\n")
    empty = CliRunner().invoke(main, ["report", str(tmp_path), "--live", "24h"])
    assert f"in {tmp_path / '.smallfirst' / 'ledger.db'}; a server of several tasks" in empty.output
    wrong = CliRunner().invoke(main, ["report", str(tmp_path), "--live", "yesterday"])
    assert wrong.exit_code == 2
    assert "write 24h, 7d or 4w" in wrong.output
