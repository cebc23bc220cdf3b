"""Sums over the ledger by time and kind: what the report, the page and the statement show.

One definition for all of them, so that they cannot disagree.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import pydantic_core

from smallfirst.pricing.charge import Charge
from smallfirst.records import Record
from smallfirst.serving.ledger.rows import AuditRow, ExpenseRow, LedgerRow

if TYPE_CHECKING:
    from smallfirst.serving.ledger.ledger import Ledger

Dimension = Literal["kind", "task", "stage", "owner", "served_name", "answered_by", "outcome"]
"""`kind`: `answer`, `audit` or an expense's kind · `outcome`: `answered`, `refused` (4xx before a model worked), `left`
(the client left first), `failed`."""
Period = Literal["hour", "day", "month"]
_LENGTH = {"hour": 13, "day": 10, "month": 7}


class Sums(Record):
    """Sums over the rows that agree in the fields that were asked for; other fields are empty."""

    period: str = ""
    """Beginning in UTC: `2026-11-27T13`, `2026-11-27` or `2026-11`; empty without periods."""
    kind: str = ""
    task: str = ""
    stage: str = ""
    owner: str = ""
    served_name: str = ""
    answered_by: str = ""
    outcome: str = ""
    n: int = 0
    cost_usd: float = 0.0
    """Sum of the costs that are known."""
    n_cost_unknown: int = 0
    """Rows with work that may have to be paid and whose cost nobody knows."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    busy_s: float = 0.0
    """Seconds that machines of our own worked."""
    machine_usd: float = 0.0
    """Part of `cost_usd` that is time of machines of our own, at the price with which its rows were written."""
    draft_usd: float = 0.0
    """Part of `cost_usd` that is drafts which were discarded."""
    n_certified: int = 0
    n_estimated: int = 0
    n_without_row: int = 0
    """Refused requests beyond the cap, which have no row."""
    latency_ms_buckets: dict[int, int] = {}
    """Answers by latency: bucket i counts those in [1.1**i, 1.1**(i+1)) ms."""


def outcome_of(row: LedgerRow) -> str:
    """Return how a request ended."""
    if row.status == 200:
        return "answered"
    if row.status == 499:
        return "left"
    return "refused" if 400 <= row.status < 500 and row.cost_usd is None else "failed"


def sum_up(
    ledger: Ledger,
    since: datetime | None,
    until: datetime | None,
    *,
    by: Sequence[Dimension],
    every: Period | None,
    equal: Mapping[str, str],
) -> tuple[Sums, ...]:
    """See `Ledger.sums`."""
    found: dict[tuple[str, ...], list[dict[str, float]]] = defaultdict(list)
    rows: list[LedgerRow | AuditRow | ExpenseRow] = [
        *ledger.entries(LedgerRow, since=since),
        *ledger.entries(AuditRow, since=since),
    ]
    for row in (*rows, *ledger.entries(ExpenseRow, since=since)):
        if until is not None and row.at >= until:
            continue
        facts, amounts = _facts(row), _amounts(row)
        if any(facts[name] != value for name, value in equal.items()):
            continue
        period = row.at.isoformat()[: _LENGTH[every]] if every else ""
        found[(period, *(facts[name] for name in by))].append(amounts)
    names = ("period", *by)
    return tuple(
        Sums.model_validate(dict(zip(names, key, strict=True)) | _added(rows)) for key, rows in sorted(found.items())
    )


def _facts(row: LedgerRow | AuditRow | ExpenseRow) -> dict[str, str]:
    if isinstance(row, LedgerRow):
        names = ("task", "stage", "owner", "served_name", "answered_by")
        return {"kind": "answer", "outcome": outcome_of(row)} | {name: getattr(row, name) or "" for name in names}
    empty = dict.fromkeys(("stage", "owner", "served_name", "answered_by", "outcome"), "")
    return empty | {"kind": "audit" if isinstance(row, AuditRow) else row.kind, "task": row.task}


def _amounts(row: LedgerRow | AuditRow | ExpenseRow) -> dict[str, float]:
    amounts: dict[str, float] = {"n": 1, "cost_usd": row.cost_usd or 0.0}
    if isinstance(row, ExpenseRow):
        return amounts | {"busy_s": row.busy_s}
    charges = [Charge.model_validate(one) for one in pydantic_core.from_json(row.charges or "[]")]
    known = [(charge, charge.usd) for charge in charges if charge.usd is not None]
    amounts |= {
        "n_cost_unknown": len(known) < len(charges),
        "busy_s": math.fsum(charge.busy_s for charge in charges),
        "machine_usd": math.fsum(usd for charge, usd in known if charge.basis == "machine time"),
        "draft_usd": math.fsum(usd for charge, usd in known if charge.purpose == "draft"),
    }
    if isinstance(row, LedgerRow):
        tokens = ("prompt_tokens", "cached_tokens", "completion_tokens")
        amounts |= {name: getattr(row, name) or 0 for name in tokens}
        amounts |= {"n_certified": bool(row.certified), "n_estimated": row.estimated}
        if row.status == 200:
            amounts["n_cost_unknown"] = len(known) < len(charges) or row.cost_usd is None
            amounts["latency_ms_buckets"] = bucket_of(row.latency_ms)
    return amounts


def bucket_of(latency_ms: float) -> int:
    """Return i for a latency in [1.1**i, 1.1**(i+1)) ms."""
    return math.floor(math.log(max(latency_ms, 0.01), 1.1) + 1e-9)


def _added(rows: Iterable[dict[str, float]]) -> dict[str, object]:
    total: dict[str, float] = defaultdict(float)
    latencies: Counter[float] = Counter()
    for row in rows:
        for name, amount in row.items():
            if name == "latency_ms_buckets":
                latencies[amount] += 1
            else:
                total[name] += amount
    floats = {"cost_usd", "busy_s", "machine_usd", "draft_usd"}
    return {
        "latency_ms_buckets": latencies,
        **{name: value if name in floats else int(value) for name, value in total.items()},
    }
