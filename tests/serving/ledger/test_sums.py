"""Sums over the ledger agree with its rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, ExpenseRow, LedgerRow

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def test_sums_by_task_and_stage_hold_every_row_once(place: Path | str) -> None:
    ledger = Ledger(place)
    row = LedgerRow(id="a", at=NOON, served_name="t", status=200, latency_ms=2.0, task="t", stage="small", cost_usd=0.1)
    large = row.model_copy(update={"id": "b", "stage": "large", "cost_usd": 0.7, "at": NOON + timedelta(hours=1)})
    refused = LedgerRow(id="c", at=NOON, served_name="t", status=422, latency_ms=1.0)
    audit = AuditRow(
        id="a", at=NOON, task="t", certificate="c", propensity=0.5, wrong=False, judged_by="large", cost_usd=0.3
    )
    training = ExpenseRow(id="run", at=NOON, task="t", kind="training", cost_usd=2.0)
    ledger.append(row, large, refused, audit, training)
    found = {(one.kind, one.stage, one.outcome): one for one in ledger.sums(by=("kind", "stage", "outcome"))}
    assert {key: (one.n, one.cost_usd) for key, one in found.items()} == {
        ("answer", "small", "answered"): (1, 0.1),
        ("answer", "large", "answered"): (1, 0.7),
        ("answer", "", "refused"): (1, 0.0),
        ("audit", "", ""): (1, 0.3),
        ("training", "", ""): (1, 2.0),
    }
    hours = ledger.sums(NOON, NOON + timedelta(hours=2), by=(), every="hour", kind="answer")
    assert [(one.period, one.n) for one in hours] == [("2026-11-27T12", 2), ("2026-11-27T13", 1)]
    assert sum(one.cost_usd for one in ledger.sums()) == pytest.approx(3.1)
    ledger.close()
