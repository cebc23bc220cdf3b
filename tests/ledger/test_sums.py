"""Sums over the ledger agree with its rows, in SQLite and in PostgreSQL."""

import json
import random
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fixtures.waiting import beside

from smallfirst.ledger import ledger as ledger_module
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AttemptRow, AuditRow, ExpenseRow, LedgerRow
from smallfirst.ledger.sums import bucket_of
from smallfirst.models.pricing import Charge

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


def some_rows(n: int, seed: int) -> list[LedgerRow]:
    """Requests of a month, some with a bill of two lines."""
    dice, rows = random.Random(seed), []
    for i in range(n):
        at = NOON + timedelta(minutes=dice.randrange(-30_000, 30_000))
        charges = [
            Charge(model="small", purpose="draft", usd=dice.random() / 1e3, busy_s=dice.random(), machine="gpu"),
            Charge(model="large", usd=dice.choice([None, 0.01]), basis="tokens"),
        ][: dice.randrange(3)]
        bill = json.dumps([charge.model_dump(mode="json") for charge in charges]) if charges else None
        status = dice.choice([200, 200, 200, 499, 503, 401])
        rows.append(
            LedgerRow(
                id=f"r{i}", at=at, served_name=dice.choice("tu"), status=status, latency_ms=dice.expovariate(0.01),
                task=dice.choice(["t", "u", None]), stage=dice.choice(["small", "large"]), owner=dice.choice("ab"),
                charges=bill, cost_usd=sum(charge.usd or 0 for charge in charges) if charges else None,
                prompt_tokens=dice.randrange(900), cached_tokens=dice.choice([None, 5]), certified=dice.random() < 0.5,
            )
        )  # fmt: skip
    return rows


def test_sums_agree_with_the_rows_for_any_period_and_fields(place: Path | str) -> None:
    ledger, rows = Ledger(place), some_rows(400, 7)
    for start in range(0, 400, 7):
        ledger.append(*rows[start : start + 7])
    since, until = NOON - timedelta(days=9), NOON + timedelta(days=8)
    for every, length in ((None, 0), ("hour", 13), ("day", 10), ("month", 7)):
        expected: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        latencies: dict[tuple[str, ...], Counter[int]] = defaultdict(Counter)
        for row in (row for row in rows if since <= row.at < until and row.owner == "a"):
            key = (row.at.isoformat()[:length], row.task or "", row.stage or "")
            known = [charge.usd for charge in row.bill if charge.usd is not None]
            expected[key].update(
                n=1, cost_usd=row.cost_usd or 0, prompt_tokens=row.prompt_tokens, cached_tokens=row.cached_tokens or 0,
                n_certified=int(row.certified or 0),
                n_cost_unknown=int(len(known) < len(row.bill) or (row.status == 200 and row.cost_usd is None)),
                draft_usd=sum(one.usd or 0 for one in row.bill if one.purpose == "draft"),
                machine_usd=sum(one.usd or 0 for one in row.bill if one.basis == "machine time"),
                busy_s=sum(one.busy_s for one in row.bill),
            )  # fmt: skip
            latencies[key].update([bucket_of(row.latency_ms)] if row.status == 200 else [])
        found = ledger.sums(since, until, by=("task", "stage"), every=every, owner="a")
        assert [(one.period, one.task, one.stage) for one in found] == sorted(expected)
        for one in found:
            key = (one.period, one.task, one.stage)
            assert {name: getattr(one, name) for name in expected[key]} == pytest.approx(expected[key], rel=1e-9)
            assert one.latency_ms_buckets == latencies[key]
    assert ledger.busy() == pytest.approx({"gpu": sum(charge.busy_s for row in rows for charge in row.bill)})
    with pytest.raises(KeyError):
        ledger.sums(tsak="t")
    ledger.close()


def test_hours_count_whole_from_the_one_of_since_to_that_of_until(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    row = LedgerRow(id="a", at=NOON + timedelta(minutes=30), served_name="t", status=200, latency_ms=1.0)
    ledger.append(row)
    assert [one.n for one in ledger.sums(NOON + timedelta(minutes=40), NOON + timedelta(minutes=41))] == [1]
    assert ledger.sums(NOON + timedelta(hours=1)) == ledger.sums(until=NOON) == ()
    ledger.close()


def test_refusals_beyond_the_cap_are_counted_without_rows(
    place: Path | str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "REFUSED_ROWS", 3)
    ledger = Ledger(place)
    row = LedgerRow(id="", at=NOON, served_name="t", status=429, latency_ms=1.0, owner="ada", error_code="busy")
    for i in range(5):
        ledger.append(row.model_copy(update={"id": f"ada{i}"}))
    ledger.append(row.model_copy(update={"id": "ben", "owner": "ben"}))
    ledger.append(row.model_copy(update={"id": "later", "at": NOON + timedelta(hours=1)}))
    ledger.append(row.model_copy(update={"id": "paid", "cost_usd": 0.1}))
    attempt = AttemptRow(id="sent", at=NOON, endpoint="http://x", model="m", outcome="HTTP 400", latency_ms=1.0)
    ledger.append(attempt, row.model_copy(update={"id": "sent", "at": NOON}))
    assert [one.id for one in ledger.rows()] == ["ada0", "ada1", "ada2", "ben", "later", "paid", "sent"]
    found = {one.owner: (one.n, one.n_without_row) for one in ledger.sums(by=("owner",), outcome="refused")}
    assert found == {"ada": (7, 2), "ben": (1, 0)}
    assert caplog.text.count("is counted, without rows") == 1
    ledger.close()


def test_names_that_nobody_serves_make_no_group_each(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for i in range(3):
        ledger.append(LedgerRow(id=f"a{i}", at=NOON, served_name=f"guess{i}", status=404, latency_ms=1.0))
    assert [(one.served_name, one.n) for one in ledger.sums(by=("served_name",))] == [("", 3)]
    assert ledger.rows()[0].served_name == "guess0"
    ledger.close()


def test_two_processes_count_the_same_hours_together(place: Path | str) -> None:
    ledgers = [Ledger(place), Ledger(place)]
    rows = [row for row in some_rows(120, 3) if row.status != 401]

    def write(ledger: Ledger, mine: list[LedgerRow]) -> None:
        for row in mine:
            ledger.append(row)

    with beside(write, *((one, rows[i::2]) for i, one in enumerate(ledgers))):
        pass
    for ledger in ledgers:
        assert sum(one.n for one in ledger.sums()) == len(ledger.rows()) == len(rows)
        ledger.close()
