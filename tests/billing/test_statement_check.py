"""The check of a statement: whatever was changed in its folder is found and named."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smallfirst.billing import statement
from smallfirst.billing.statement import canonical, make, public_text
from smallfirst.billing.statement_check import verify
from smallfirst.errors import ConfigError
from smallfirst.files import sha256
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import ExpenseRow, LedgerRow
from tests.billing.test_statement import KEYS, LATER, NOON, fill, made


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
        ("rows.csv", "s7,2026-11-11T12:00:00+00:00,t,small", "s7,2026-11-11T12:00:00+00:00,t,large", "answer s7 was"),
        ("rows.csv", "0.3,,", "0.4,,", "line 23: audit s0 was"),
        ("rows.csv", "kind,id", "id,kind", "heading"),
        ("statement.json", '"cost_usd":0.21', '"cost_usd":0.22', "signature"),
        ("statement.html", "$2.01 more than the large model", "$1.01 more than the large model", "html was changed"),
        ("statement.json", '"signature":', '"comment":"paid","signature":', "comment: nobody signed that"),
        ("statement.json", '"month"', '"made_by_us":true,"month"', "signature does not fit"),
        ("statement.json", '{"public_key"', '{"statement":{"month":"2026-10"},"public_key"', '"statement" stands more'),
        ("statement.json", '"made_by":', '"made_by":"us","made_by":', '"made_by" stands more than once, beside '),
        ("statement.json", '"n":20', '"n":NaN', "NaN is no number"),
        ("statement.json", '"n":20', '"n":-Infinity', "-Infinity is no number"),
        ("statement.json", '"n":20', '"n":1e999', "Out of range float"),
        ("statement.json", '"n":20', '"n":2.0e1', "byte "),
        ("statement.json", '{"public_key"', ' {"public_key"', "byte 0"),
        ("statement.json", '","signature":"', '=","signature":"', "public_key is not the Base64 of 32"),
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


def test_rows_taken_out_put_in_or_made_anew_are_found(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    made(ledger, tmp_path)
    rows = (tmp_path / "rows.csv").read_text().splitlines(keepends=True)
    for changed, said in (
        ([*rows[:4], *rows[5:]], "line 5: answer s4 was"),
        ([*rows[:4], rows[6], *rows[4:]], "line 5: answer s5 was"),
        ([*rows[:4], rows[4].replace(",", ";"), *rows[5:]], "line 5"),
        (rows[:-1], "other rows"),
    ):
        (tmp_path / "rows.csv").write_text("".join(changed))
        with pytest.raises(ConfigError, match=said):
            verify(tmp_path)
    # Somebody writes other rows with checks of their own: what is signed is not theirs.
    ledger.append(ExpenseRow(id="more", at=NOON, task="t", kind="labels", cost_usd=5.0))
    make(ledger, "2026-11", tmp_path / "other", key=Ed25519PrivateKey.generate(), now=LATER)
    (tmp_path / "rows.csv").write_bytes((tmp_path / "other" / "rows.csv").read_bytes())
    with pytest.raises(ConfigError, match="other rows"):
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
    monkeypatch.setattr(statement, "MADE_BY", "smallfirst 0.0.1")
    monkeypatch.setattr(statement, "page_of", lambda found, key: b"<h1>another look</h1>")
    made(ledger, tmp_path)
    assert verify(tmp_path).page.startswith("statement.html is as it was signed; smallfirst 0.0.1 made it, and ")
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
    with pytest.raises(ConfigError, match=r"rows\.csv: row 1 is not readable: .*No such file"):
        verify(tmp_path)
    signed = json.loads((tmp_path / "statement.json").read_text())
    del signed["signature"]
    (tmp_path / "statement.json").write_bytes(canonical(signed))
    with pytest.raises(ConfigError, match="no statement: signature is missing"):
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
