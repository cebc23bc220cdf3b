"""The check of a statement: whatever was changed in its folder is found and named. Its page loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smallfirst.base.errors import ConfigError
from smallfirst.base.files import sha256
from smallfirst.deployment.billing import statement
from smallfirst.deployment.billing.saved import Amount, MachineCost
from smallfirst.deployment.billing.statement import canonical, make, page_of, public_text, verify
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, ExpenseRow, LedgerRow
from tests.deployment.billing.test_statement import KEYS, LATER, NOON, fill, made


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.db")
    yield opened
    opened.close()


def sign(signed: dict[str, Any], folder: Path) -> None:
    """Sign what was changed, as a sender could."""
    signed["signature"] = base64.b64encode(KEYS.sign(canonical(signed["statement"]))).decode()
    (folder / "statement.json").write_bytes(canonical(signed))


def test_a_statement_that_nobody_touched_verifies_without_the_ledger_and_with_it(
    ledger: Ledger, tmp_path: Path
) -> None:
    fill(ledger)
    found = made(ledger, tmp_path / "november")
    same = "statement.html was made anew from these figures: equal, byte for byte"
    assert verify(tmp_path / "november") == (found, public_text(KEYS), same)
    assert verify(tmp_path / "november", public_key=public_text(KEYS), ledger=ledger).statement == found
    with pytest.raises(ConfigError, match="not by"):
        verify(tmp_path / "november", public_key=public_text(Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigError, match="no statement"):
        verify(tmp_path)
    ledger.append(ExpenseRow(id="forgotten", at=NOON, task="t", kind="labels", cost_usd=5.0))
    with pytest.raises(ConfigError, match=r"labels forgotten of .* is only in the ledger"):
        verify(tmp_path / "november", ledger=ledger)


def test_a_row_that_the_ledger_has_otherwise_is_named(tmp_path: Path) -> None:
    small = LedgerRow(
        id="a", at=NOON, served_name="t", status=200, latency_ms=1.0, task="t", stage="small", cost_usd=0.1
    )
    said, held = Ledger(tmp_path / "said.db"), Ledger(tmp_path / "held.db")
    said.append(small, small.model_copy(update={"id": "b"}))
    made(said, tmp_path / "november")
    held.append(small)
    with pytest.raises(ConfigError, match=r"answer b of .* is only in the statement"):
        verify(tmp_path / "november", ledger=held)
    held.append(small.model_copy(update={"id": "b", "cost_usd": 0.2}))
    with pytest.raises(ConfigError, match=r"answer b of .* is not as there"):
        verify(tmp_path / "november", ledger=held)
    said.close()
    held.close()


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("rows.csv", "s7,2026-11-11T12:00:00+00:00,t,small", "s7,2026-11-11T12:00:00+00:00,t,large", "not the rows"),
        ("rows.csv", "kind,id", "id,kind", "not the rows"),
        ("statement.json", '"cost_usd":0.21', '"cost_usd":0.22', "signature"),
        ("statement.html", "$2.01 more than the large model", "$1.01 more than the large model", "html was changed"),
        ("statement.json", '"signature":', '"comment":"paid","signature":', "not as a statement is written"),
        ("statement.json", '"month"', '"made_by_us":true,"month"', "signature does not fit"),
        ("statement.json", '{"public_key"', '{"statement":{"month":"2026-10"},"public_key"', "not as a statement is"),
        ("statement.json", '"made_by":', '"made_by":"us","made_by":', "not as a statement is written"),
        ("statement.json", '"n":20', '"n":NaN', "Out of range float"),
        ("statement.json", '"n":20', '"n":1e999', "Out of range float"),
        ("statement.json", '"n":20', '"n":2.0e1', "not as a statement is written"),
        ("statement.json", '{"public_key"', ' {"public_key"', "not as a statement is written"),
        ("statement.json", '","signature":"', '=","signature":"', "no statement"),
        ("statement.json", '"statement":', '"statement":' + 9999 * "[" + 9999 * "]" + ',"state":', "recursion"),
        ("statement.json", '"signature":"', '"signature":"AAAA', "statement"),
    ],
)
def test_what_was_changed_is_found_and_named(
    ledger: Ledger, tmp_path: Path, file: str, before: str, after: str, said: str
) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    content = (tmp_path / file).read_text()
    assert before in content
    (tmp_path / file).write_text(content.replace(before, after, 1))
    with pytest.raises(ConfigError, match=said):
        verify(tmp_path)


def test_rows_of_another_statement_are_found(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    ledger.append(ExpenseRow(id="more", at=NOON, task="t", kind="labels", cost_usd=5.0))
    make(ledger, "2026-11", tmp_path / "other", key=Ed25519PrivateKey.generate(), now=LATER)
    (tmp_path / "rows.csv").write_bytes((tmp_path / "other" / "rows.csv").read_bytes())
    with pytest.raises(ConfigError, match="not the rows that were signed"):
        verify(tmp_path)


def test_figures_that_do_not_follow_from_the_rows_are_found_although_they_are_signed(
    ledger: Ledger, tmp_path: Path
) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    signed = json.loads((tmp_path / "statement.json").read_text())
    signed["statement"]["figures"]["sums"][0]["cost_usd"] += 1
    sign(signed, tmp_path)
    with pytest.raises(ConfigError, match="sums do not follow from the rows"):
        verify(tmp_path)


def test_a_sender_who_signs_a_page_of_other_figures_is_found_out(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    page = tmp_path / "statement.html"
    page.write_text(page.read_text().replace("$2.01", "$1.01"))
    signed = json.loads((tmp_path / "statement.json").read_text())
    signed["statement"]["page_sha256"] = sha256(page)
    sign(signed, tmp_path)
    with pytest.raises(ConfigError, match="is not the page of these figures"):
        verify(tmp_path)


def test_a_page_of_another_version_is_held_against_its_signature_alone(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ledger)
    with monkeypatch.context() as other:
        other.setattr(statement, "MADE_BY", "smallfirst 0.0.1")
        other.setattr(statement, "page_of", lambda found, key: b"<h1>another look</h1>")
        made(ledger, tmp_path)
    assert verify(tmp_path).page == "statement.html is as it was signed, by smallfirst 0.0.1"
    page = tmp_path / "statement.html"
    page.write_bytes(b"<h1>paid</h1>")
    with pytest.raises(ConfigError, match="changed after it was signed"):
        verify(tmp_path)
    signed = json.loads((tmp_path / "statement.json").read_text())
    signed["statement"]["figures"]["sums"][0]["n"] += 1
    sign(signed, tmp_path)
    with pytest.raises(ConfigError) as refused:
        verify(tmp_path)
    assert "check it with that version" in str(refused.value)


def test_what_is_missing_is_said(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    (tmp_path / "statement.html").unlink()
    assert verify(tmp_path).page == "statement.html is not there: no page was compared"
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(ConfigError, match=r"rows\.csv: these are not the rows.*No such file"):
        verify(tmp_path)
    signed = json.loads((tmp_path / "statement.json").read_text())
    del signed["signature"]
    (tmp_path / "statement.json").write_bytes(canonical(signed))
    with pytest.raises(ConfigError, match="no statement: it is not as a statement is written"):
        verify(tmp_path)


def test_a_signed_name_that_this_version_does_not_know_is_refused_with_its_place(
    ledger: Ledger, tmp_path: Path
) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    signed = json.loads((tmp_path / "statement.json").read_text())
    signed["statement"]["figures"]["sums"][0]["rebate_usd"] = 1.0
    sign(signed, tmp_path)
    with pytest.raises(ConfigError, match=r"figures\.sums\.0\.rebate_usd: unknown"):
        verify(tmp_path)


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


def test_cells_and_audits(ledger: Ledger, tmp_path: Path) -> None:
    row = LedgerRow(
        id="r", at=NOON, served_name="t", status=200, latency_ms=1.0, task="=t", stage="small", cost_usd=0.1
    )
    audit = AuditRow(id="r", at=NOON, task="=t", certificate="c", propensity=1.0, wrong=True, judged_by="large")
    for i in range(24):  # 12 stayed small, beside 12 answers of the large model drafts were audited
        large = {"stage": "large", "certified": False} if i % 2 else {"certified": True}
        ledger.append(row.model_copy(update={"id": f"r{i}", "audited": True, **large}))
        ledger.append(audit.model_copy(update={"id": f"r{i}", "cost_usd": 0.01 if i % 2 else 0.5}))
    figures = make(ledger, "2026-11", tmp_path, key=KEYS, now=LATER).figures
    # A spreadsheet runs no cell, and audits tell the large model's price.
    assert "answer,r0,2026-11-10T12:00:00+00:00,'=t,small" in (tmp_path / "rows.csv").read_text()
    (saving,), (proof,) = figures.savings, figures.proofs
    assert (saving.basis, saving.would_have_usd and saving.would_have_usd.usd) == ("audits", 12 * 0.5)
    assert (proof.wrong.n, proof.n_wrong) == (24, 24)
