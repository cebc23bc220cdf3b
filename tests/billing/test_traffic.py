"""A task's traffic by period: gaps are zeros, days begin at midnight UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from smallfirst.billing.traffic import TaskPeriod, periods
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import LedgerRow

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def row(id: str, stage: str | None, days: int, status: int = 200, usd: float | None = 0.5) -> LedgerRow:
    """A row of the task, some days after noon."""
    return LedgerRow(
        id=id, at=NOON + timedelta(days=days), served_name="t", status=status, latency_ms=2.0, task="t", stage=stage,
        cost_usd=usd,
    )  # fmt: skip


def test_days_from_the_first_request_on_with_gaps_as_zeros(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    assert periods(ledger, "t", NOON, NOON + timedelta(days=2)) == ()
    ledger.append(
        row("a", "words", 0), row("b", "person", 0, usd=None), row("c", "large", 2), row("d", "large", 2, 502)
    )
    found = periods(ledger, "t", NOON - timedelta(days=5), NOON + timedelta(days=3))
    assert [(one.period, one.n, one.n_small, one.n_large) for one in found] == [
        ("2026-11-27", 1, 1, 0), ("2026-11-28", 0, 0, 0), ("2026-11-29", 1, 0, 1), ("2026-11-30", 0, 0, 0),
    ]  # fmt: skip
    whole = TaskPeriod.of(ledger.sums(by=("kind", "stage", "outcome"), task="t"))
    assert (whole.n, whole.small_usd, whole.large_usd, whole.other_usd) == (2, 0.5, 0.5, 0.5)
    ledger.close()
