"""The page of a statement: what finance reads, and nothing that loads or runs."""

from __future__ import annotations

from pathlib import Path

from smallfirst.billing.machines import MachineCost
from smallfirst.billing.saved import Amount
from smallfirst.billing.statement import make
from smallfirst.billing.statement_page import money_chart, page_of
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import LedgerRow
from tests.billing.test_statement import KEYS, LATER, NOON, fill


def test_it_shows_saving_costs_proof_prices_and_how_to_check(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    fill(ledger)
    machine = MachineCost(usd_per_hour=0.1, up_s=36_000, busy_s=3600, stated_utilisation=0.3, charged_usd=0.2)
    found = make(ledger, "2026-11", tmp_path, key=KEYS, now=LATER, machines=[machine])
    page = page_of(found, "KEY").decode()
    for words in (
        "<h1>Statement of November 2026: cost $2.01 more than the large model alone</h1>",  # 6 - 0.21 - 6 - 1 - 0.8
        "answers of small models",
        "own machine, time that no row carries",
        "busy 10.0\N{NO-BREAK SPACE}% of it; charged as if 30.0\N{NO-BREAK SPACE}%",
        "at most 5 % wrong",
        "1 of 20",
        "measured on 20 of them, drawn at random",
        "prices.<wbr>yaml",
        "from live to drift: confidence fell",
        "smallfirst statement --verify FOLDER --public-key KEY",
        '<svg class="chart" id="money"',
    ):
        assert words in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    ledger.close()


def test_names_from_outside_are_escaped_and_an_unknown_saving_is_said(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    row = LedgerRow(id="a", at=NOON, served_name="t", status=200, latency_ms=1.0, task="<b>t", stage="small")
    ledger.append(row.model_copy(update={"cost_usd": 0.5}), row.model_copy(update={"id": "b"}))
    found = make(ledger, "2026-11", tmp_path, key=KEYS, now=LATER)
    page = page_of(found, "KEY").decode()
    assert "<b>t" not in page
    assert "$0.50 spent" in page
    assert "nothing tells what the large model costs here" in page
    assert "and 1 with work whose cost nobody knows" in page
    assert money_chart(found) is None  # one day
    known = make(
        ledger,
        "2026-11",
        tmp_path,
        key=KEYS,
        now=LATER,
        evaluated={"<b>t": Amount(usd=1.0, low_usd=0.5, high_usd=1.5, n=9)},
    )
    assert "saved $1.50" in page_of(known, "KEY").decode()
    ledger.close()
