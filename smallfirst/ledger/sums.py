"""Sums over the ledger by hour and kind: what the report, the page and the statement show.

One definition for all of them, so that they cannot disagree. They are written in the transaction of the rows that they
count, so a month is read without reading its rows.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, get_args

import pydantic

from smallfirst.base.records import Record
from smallfirst.ledger.rows import BILL, AuditRow, Entry, ExpenseRow, LedgerRow
from smallfirst.models.pricing import Charge

HOUR_S = 3600
MOST_MISSING = 0.1
"""Share of drawn audits that may be without a verdict before that is a warning."""

Dimension = Literal["kind", "task", "stage", "owner", "served_name", "answered_by", "outcome"]
"""`kind`: `answer`, `audit` or an expense's kind · `outcome`: `answered`, `refused` (4xx before a model worked), `left`
(the client left first), `failed` · `served_name` is empty where no such name is served."""
Period = Literal["hour", "day", "month"]


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


DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
AMOUNTS: dict[str, type[int] | type[float]] = {
    name: float if field.annotation is float else int
    for name, field in Sums.model_fields.items()
    if field.annotation in (int, float)
}
"""The fields of `Sums` that are added up."""


class DrawnAudits(Record):
    """Small answers of a task that chance drew for an audit, and how many of them have no verdict."""

    task: str
    n: int
    n_missing: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def warns(self) -> bool:
        """True if so many are missing that the others need not stand for them."""
        return self.n_missing > MOST_MISSING * self.n

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def in_words(self) -> str:
        """The count in a sentence, with what to do about it where it warns."""
        said = f"{self.n_missing:,} of {self.n:,} drawn audits have no verdict"
        if not self.warns:
            return f"{said}."
        return (
            f"{said} ({self.n_missing / self.n:.0%}): the others need not stand for them, and an alarm comes later. "
            f"See that the large model answers as the task asks, or mark them: smallfirst review {self.task}."
        )

    @classmethod
    def of(cls, drawn: Iterable[tuple[str, str]]) -> tuple[DrawnAudits, ...]:
        """Return the counts by task, from the task and the judge of each answer, as `Ledger.drawn` has them."""
        judges: dict[str, Counter[str]] = defaultdict(Counter)
        for task, judge in drawn:
            judges[task][judge] += 1
        return tuple(cls(task=task, n=n.total(), n_missing=n["nobody"]) for task, n in sorted(judges.items()))


class Rollup:
    """What some rows add to the sums."""

    def __init__(self) -> None:
        self.groups: dict[int, tuple[str, ...]] = {}
        """Values of DIMENSIONS by their id."""
        self.sums: dict[tuple[int, int], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        """AMOUNTS by hour and group."""
        self.latencies: Counter[tuple[int, int, int]] = Counter()
        """Answers by hour, group and bucket."""
        self.busy_s: dict[tuple[int, str, str], float] = defaultdict(float)
        """Seconds by hour, machine and an empty host."""

    def add(self, row: Entry, *, without_row: bool = False) -> None:
        """Count an answer, an audit or an expense; `without_row`: it is not kept itself."""
        if not isinstance(row, LedgerRow | AuditRow | ExpenseRow):
            return
        facts, hour = facts_of(row), hour_of(row.at)
        bill = BILL.validate_json(row.charges) if not isinstance(row, ExpenseRow) and row.charges else ()
        # A hash, so that two processes agree on it without asking.
        group = int.from_bytes(hashlib.blake2b("\x1f".join(facts).encode(), digest_size=8).digest()) >> 1
        self.groups[group] = facts
        sums = self.sums[hour, group]
        for name, amount in amounts_of(row, bill).items():
            sums[name] += amount
        if without_row:
            sums["n_without_row"] += 1
        if isinstance(row, LedgerRow) and row.status == 200:
            self.latencies[hour, group, bucket_of(row.latency_ms)] += 1
        for charge in bill:
            if charge.busy_s:
                self.busy_s[hour, charge.machine, ""] += charge.busy_s


def hour_of(moment: datetime, *, up: bool = False) -> int:
    """Return the hour since 1970 in which a moment is; `up`: the first that does not begin before it."""
    hours = moment.timestamp() / HOUR_S
    return math.ceil(hours) if up else math.floor(hours)


def outcome_of(row: LedgerRow) -> str:
    """Return how a request ended."""
    if row.status == 200:
        return "answered"
    if row.status == 499:
        return "left"
    return "refused" if 400 <= row.status < 500 and row.cost_usd is None else "failed"


def facts_of(row: LedgerRow | AuditRow | ExpenseRow) -> tuple[str, ...]:
    """Return the values of DIMENSIONS."""
    if not isinstance(row, LedgerRow):
        return "audit" if isinstance(row, AuditRow) else row.kind, row.task, "", "", "", "", ""
    # A name that is not served is the client's text: every one would be a group.
    served_name = "" if row.status == 404 else row.served_name
    found = (row.task, row.stage, row.owner, served_name, row.answered_by)
    return "answer", *(value or "" for value in found), outcome_of(row)


def amounts_of(row: LedgerRow | AuditRow | ExpenseRow, bill: tuple[Charge, ...]) -> dict[str, float]:
    """Return what a row adds to AMOUNTS."""
    amounts: dict[str, float] = {"n": 1, "cost_usd": row.cost_usd or 0.0}
    if isinstance(row, ExpenseRow):
        return amounts | {"busy_s": row.busy_s}
    unknown = False
    if isinstance(row, LedgerRow):
        tokens = ("prompt_tokens", "cached_tokens", "completion_tokens")
        amounts |= {name: getattr(row, name) or 0 for name in tokens}
        amounts |= {"n_certified": bool(row.certified), "n_estimated": row.estimated}
        unknown = row.status == 200 and row.cost_usd is None
    if bill:
        known = [(charge, charge.usd) for charge in bill if charge.usd is not None]
        unknown = unknown or len(known) < len(bill)
        amounts |= {
            "busy_s": math.fsum(charge.busy_s for charge in bill),
            "machine_usd": math.fsum(usd for charge, usd in known if charge.basis == "machine time"),
            "draft_usd": math.fsum(usd for charge, usd in known if charge.purpose == "draft"),
        }
    return amounts | {"n_cost_unknown": unknown}


def bucket_of(latency_ms: float) -> int:
    """Return i for a latency in [1.1**i, 1.1**(i+1)) ms."""
    return math.floor(math.log(max(latency_ms, 0.01), 1.1) + 1e-9)
