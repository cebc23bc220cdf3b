"""Traffic that all five answerers had: all readers agree, before and after rows expire and a restart."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smallfirst.deployment.billing.saved import savings, total
from smallfirst.deployment.billing.statement import make, verify
from smallfirst.deployment.dashboard.watch import watch
from smallfirst.ledger.database import DRAWN
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)
NOW = datetime(2026, 12, 2, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
STAGES = {
    "words": (20, 0.001),
    "large": (3, 0.5),
    "general": (12, 0.25),
    "person": (4, 0.002),
    "out_of_scope": (5, 0.004),
}


def fill(ledger: Ledger) -> None:
    """Answers of one day; each of the small ones is audited for $0.02."""
    for stage, (n, usd) in STAGES.items():
        small = stage == "words"
        for i in range(n):
            row = LedgerRow(id=f"{stage}{i}", at=NOON, served_name="t", status=200, latency_ms=1.0, task="t")
            known = {"stage": stage, "cost_usd": usd, "certified": small, "audited": small}
            ledger.append(row.model_copy(update=known))
    values: dict[str, Any] = {"task": "t", "certificate": "c", "propensity": 1.0, "wrong": False, "judged_by": "large"}
    ledger.append(*(AuditRow(id=f"words{i}", at=NOON, cost_usd=0.02, **values) for i in range(20)))


def seen(ledger: Ledger) -> dict[str, Any]:
    found = watch(ledger, {}, {"task": "t"}, now=NOON + timedelta(days=5))
    return {name: found[name] for name in ("saving", "n", "usd", "audits", "share", "periods")}


def test_all_readers_agree_for_good(place: Path | str, tmp_path: Path) -> None:
    ledger = Ledger(place)
    fill(ledger)
    before, page = savings(ledger, None, None), seen(ledger)
    saving = total(before)
    assert (saving.basis, saving.n_small, saving.n_large) == ("audits", 20, 15)
    assert saving.saved_usd is not None
    assert saving.saved_usd.usd == pytest.approx(20 * 0.02 - 20 * 0.001 - 20 * 0.02 - 4 * 0.002 - 5 * 0.004)
    statement = make(ledger, "2026-11", tmp_path / "november", key=KEY, now=NOW)
    assert statement.figures.savings == before
    bill = {kind: (n, round(usd, 9)) for kind, (n, usd) in statement.bill.items()}
    assert bill == {
        "answers of small models": (20, 0.02),
        "answers of the large model": (3, 1.5),
        "answers of the general model": (12, 3.0),
        "audits": (20, 0.4),
        "requests left to a person": (4, 0.008),
        "other answers": (5, 0.02),
    }
    assert page["n"] == {"small": 20, "large": 15, "other": 9}
    assert sum(page["usd"].values()) == pytest.approx(statement.total_usd)
    assert page["saving"]["saved_usd"] == saving.saved_usd.model_dump()

    ledger.expire_rows(NOW)
    ledger.close()
    ledger = Ledger(place)
    assert ledger.rows() == ()
    assert savings(ledger, None, None) == before
    assert seen(ledger) == page
    assert page["audits"] == [one.model_dump() for one in statement.figures.audits]
    assert verify(tmp_path / "november").statement.figures == statement.figures
    ledger.close()


def test_a_ledger_of_an_earlier_version_keeps_what_audits_need_from_now_on(place: Path | str) -> None:
    ledger = Ledger(place)
    fill(ledger)
    DRAWN.drop(ledger.database.writer)  # 0.2.0 has none
    ledger.close()
    ledger = Ledger(place)
    before = savings(ledger, None, None)
    ledger.expire_rows(NOW)
    assert savings(ledger, None, None) == before
    assert ledger.judged("words0") == ("words", True)
    ledger.close()
