"""Lines of a statement: nothing that a spreadsheet runs, and audits that tell a price."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

from smallfirst.billing.statement_rows import Tally, ledger_lines, write_lines
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, LedgerRow

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)


def test_cells_and_audits(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    row = LedgerRow(
        id="r", at=NOON, served_name="t", status=200, latency_ms=1.0, task="=t", stage="small", cost_usd=0.1
    )
    audit = AuditRow(id="r", at=NOON, task="=t", certificate="c", propensity=1.0, wrong=True, judged_by="large")
    for i in range(24):  # 12 stayed small, beside 12 answers of the large model drafts were audited
        large = {"stage": "large", "certified": False} if i % 2 else {"certified": True}
        ledger.append(row.model_copy(update={"id": f"r{i}", "audited": True, **large}))
        ledger.append(audit.model_copy(update={"id": f"r{i}", "cost_usd": 0.01 if i % 2 else 0.5}))
    written, tally = io.StringIO(), Tally()
    for line in write_lines(written, ledger_lines(ledger, NOON, NOON + timedelta(days=1), (), {})):
        tally.add(line)
    assert "answer,r0,2026-11-10T12:00:00+00:00,'=t,small" in written.getvalue()
    figures = tally.figures({})
    (saving,), (proof,) = figures.savings, figures.proofs
    assert (saving.basis, saving.would_have_usd and saving.would_have_usd.usd) == ("audits", 12 * 0.5)
    assert (proof.wrong.n, proof.n_wrong) == (24, 24)
    ledger.close()
