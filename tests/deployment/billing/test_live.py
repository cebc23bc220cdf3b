"""The live report against the ledger's sums, in words and as a page."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smallfirst.deployment.billing.live import IDLE, latency_ms, live_report
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, ExpenseRow, LedgerRow
from smallfirst.models.pricing import MachinePrice, PriceBook
from smallfirst.path.report.page import render_page

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
PRICES = PriceBook(machine=MachinePrice(usd_per_hour=0.36, utilisation=0.5))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Ten days with 12 small answers (1 s, $0.0002 each), 2 large ones ($0.01 and a draft) and an audit ($0.01)."""
    found = Ledger(tmp_path / "ledger.db")
    own = {"model": "t-small@1", "usd": 0.0002, "busy_s": 1.0, "basis": "machine time"}
    hosted = {"model": "gpt", "usd": 0.01, "basis": "tokens"}
    rows: list[LedgerRow | AuditRow | ExpenseRow] = [
        ExpenseRow(id="run", at=NOON - timedelta(days=20), task="t", kind="training", cost_usd=2.0)
    ]
    for day in range(10):
        at = NOON - timedelta(days=day)
        for i in range(14):
            small = i < 12
            lines = [own] if small else [own | {"purpose": "draft"}, hosted]
            rows.append(LedgerRow(
                id=f"{day}-{i}", at=at, served_name="t", status=200, latency_ms=3.0 if small else 700.0, task="t",
                stage="small" if small else "large", answered_by=str(lines[-1]["model"]), certified=small,
                cost_usd=0.0002 if small else 0.0102, charges=json.dumps(lines),
            ))  # fmt: skip
        rows.append(AuditRow(
            id=f"{day}-0", at=at, task="t", certificate="c", propensity=0.1, wrong=False, judged_by="large",
            cost_usd=0.01, charges=json.dumps([hosted | {"purpose": "audit"}]),
        ))  # fmt: skip
        found.note_uptime(at, at + timedelta(minutes=10))
    rows.append(LedgerRow(id="bad", at=NOON, served_name="t", status=422, latency_ms=1.0, task="t"))
    found.append(*rows)
    yield found
    found.close()


def test_a_day_by_hand(ledger: Ledger) -> None:
    found = live_report(ledger, "t", PRICES, NOON - timedelta(hours=1), NOON + timedelta(hours=1))
    assert found.outcomes == {"answered": 14, "refused": 1}
    assert [(one.stage, one.model, one.n, one.busy_s) for one in found.models] == [
        ("small", "t-small@1", 12, 12.0), ("large", "gpt", 2, 2.0),
    ]  # fmt: skip
    assert [one.p50_ms for one in found.models] == pytest.approx([3.0, 700.0], rel=0.06)
    (machine,) = found.machines
    assert (machine.up_s, machine.busy_s, machine.rent_usd) == pytest.approx((600, 14, 0.06))
    assert found.costs[IDLE] == pytest.approx(0.06 - 14 * 0.0002)
    # Own machines cost their rent, the large model what it billed: nothing is counted twice or left out.
    assert found.cost_usd == pytest.approx(0.06 + 2 * 0.01 + 0.01)
    assert found.once == {"training": 2.0}
    assert found.saving is not None
    assert found.saving.basis == "escalated"
    assert found.saved_usd is not None
    assert found.saved_usd.usd == pytest.approx(12 * 0.01 - 0.06 - 0.01)
    per_1k = dict(found.facts)["per 1,000 that stayed small"]
    assert per_1k == "$5.83 with drafts, audits and all rent; by the large model $10.00"  # (0.06 + 0.01) / 12


def test_a_month_of_the_machines_is_earned_from_so_many_requests_on(ledger: Ledger) -> None:
    found = live_report(ledger, "t", PRICES, NOON - timedelta(days=30), NOON + timedelta(hours=1))
    rows = [one for one in ledger.sums(NOON - timedelta(days=30), task="t", by=("kind",)) if one.kind != "training"]
    assert found.cost_usd - found.costs[IDLE] == pytest.approx(sum(one.cost_usd for one in rows))
    assert found.saving is not None
    assert found.saving.basis == "audits"
    # By ten days: 120 small answers for which $0.01 was not billed; rent $0.60, audits $0.10.
    saved_usd = 120 * 0.01 - 0.60 - 0.10
    assert found.saved_usd is not None
    assert found.saved_usd.usd == pytest.approx(saved_usd)
    assert found.month_rent_usd == pytest.approx(0.36 * 730)
    assert found.pays_from == math.ceil(0.36 * 730 / ((saved_usd + 0.60) / 140))
    assert found.paid_back_after == 560  # $2.00 at $0.50 for 140 requests
    assert found.verdict == (
        "The small model pays: it saved $0.500 (95 %: $0.500 to $0.500). A month of its machines ($263) is earned "
        "from 33,448 requests on; this time had 140. What was spent once ($2.00) is paid back after 560 requests."
    )


def test_dear_machines_keep_the_api(ledger: Ledger) -> None:
    dear = PriceBook(machine=MachinePrice(usd_per_hour=0.72, utilisation=0.5))
    found = live_report(ledger, "t", dear, NOON - timedelta(days=30), NOON + timedelta(hours=1))
    assert found.verdict.startswith("Keep the API: with the small model this time cost more, by $0.100 ")
    assert "is never paid back" in found.verdict
    page = render_page("live.html", report=found)
    assert "Keep the API" in page
    assert "0.72" in page
    assert "<script" not in page
    rough = live_report(ledger, "t", PRICES, NOON - timedelta(hours=1), NOON + timedelta(hours=1)).verdict
    assert rough.startswith("Not decided: $0.05")
    assert "which are too few for a range" in rough
    assert "The large model's price is the mean of 2 answers that the large model gave" in rough


def test_a_task_without_traffic_has_a_report_without_figures(ledger: Ledger) -> None:
    found = live_report(ledger, "other", PRICES, NOON - timedelta(hours=1), NOON)
    assert (found.models, found.pays_from, found.saved_usd) == ((), None, None)
    assert "nobody knows" in found.verdict
    assert "nobody knows" in render_page("live.html", report=found)


def test_quantiles_of_latencies_from_buckets() -> None:
    buckets = {math.floor(math.log(ms, 1.1)): n for ms, n in ((2.0, 90), (50.0, 8), (900.0, 2))}
    assert [latency_ms(buckets, q) for q in (0.5, 0.95, 0.99)] == pytest.approx([2.0, 50.0, 900.0], rel=0.05)
    assert latency_ms({}, 0.5) == 0.0
