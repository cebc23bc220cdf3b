"""The files from a usage that is recorded to the signed statement of its month: few, and documented."""

import re
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smallfirst.deployment.billing.saved import machine_costs
from smallfirst.deployment.billing.statement import make, month_of
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow
from smallfirst.models.pricing import PriceBook, charges_json
from tests.architecture.test_request_path import DOCUMENT, entered_files

MAX_FILES = 15
NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)
CHARGE = PriceBook().machine.charge("tickets-small@1", 0.2)


def record_and_bill(ledger: Ledger, key: Ed25519PrivateKey, name: str, folder: Path) -> set[str]:
    """Record an answer and its audit, make the statement of their month, and return the files that this enters."""
    paid = {"cost_usd": CHARGE.usd, "charges": charges_json((CHARGE,)), "prompt_tokens": 4, "completion_tokens": 1}
    route = {"task": "tickets", "stage": "small", "certified": True, "audited": True, "guarantee": "at most 5 % wrong"}
    answer = LedgerRow.model_validate({"served_name": "tickets", "status": 200, "latency_ms": 1.0, **paid, **route}
                                      | {"id": name, "at": NOON})  # fmt: skip
    audit = {"task": "tickets", "certificate": "c", "propensity": 0.5, "wrong": False, "judged_by": "large"}
    with entered_files() as entered:
        ledger.append(answer)
        ledger.append(AuditRow.model_validate({"id": name, "at": NOON, "cost_usd": 0.01, **audit}))
        machines = machine_costs(ledger, PriceBook(), *month_of("2026-11"))
        make(ledger, "2026-11", folder / name, key=key, machines=machines, now=datetime(2026, 12, 2, tzinfo=UTC))
    return entered


def test_a_usage_passes_through_few_files_to_the_statement_and_these_are_documented(tmp_path: Path) -> None:
    ledger, key = Ledger(tmp_path / "ledger.db"), Ed25519PrivateKey.generate()
    record_and_bill(ledger, key, "first", tmp_path)  # start-up
    entered = record_and_bill(ledger, key, "second", tmp_path)
    ledger.close()
    section = DOCUMENT.read_text(encoding="utf-8").partition("## From a usage to the signed statement")[2]
    documented = re.findall(r"^\d+\. `(smallfirst/[\w/]+\.py)`", section.partition("\n## ")[0], re.MULTILINE)
    assert len(entered) <= MAX_FILES, sorted(entered)
    assert sorted(entered) == sorted(documented)
