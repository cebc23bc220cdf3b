"""Sums by hour, written in the transaction of the rows that they count: a month is read without reading its rows."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Table

from smallfirst.serving.ledger.rows import BILL, Entry, ExpenseRow, LedgerRow
from smallfirst.serving.ledger.sums import (
    AMOUNTS,
    DIMENSIONS,
    SUMMED,
    amounts_of,
    bucket_of,
    facts_of,
)
from smallfirst.serving.ledger.tables import GROUPS, LATENCIES, MACHINES, SUMS

Write = Callable[[Table, Sequence[Mapping[str, Any]], Sequence[str]], None]
HOUR_S = 3600


class Rollup:
    """What some rows add to the sums."""

    def __init__(self) -> None:
        self.groups: dict[int, tuple[str, ...]] = {}
        self._sums: dict[tuple[int, int], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._latencies: Counter[tuple[int, int, int]] = Counter()
        self._busy: dict[tuple[int, str, str], float] = defaultdict(float)

    def add(self, row: Entry, *, without_row: bool = False) -> None:
        """Count a row; `without_row`: it is not kept itself."""
        if not isinstance(row, SUMMED):
            return
        facts, hour = facts_of(row), hour_of(row.at)
        bill = BILL.validate_json(row.charges) if not isinstance(row, ExpenseRow) and row.charges else ()
        # A hash, so that two processes agree on it without asking.
        group = int.from_bytes(hashlib.blake2b("\x1f".join(facts).encode(), digest_size=8).digest()) >> 1
        self.groups[group] = facts
        sums = self._sums[hour, group]
        for name, amount in amounts_of(row, bill).items():
            sums[name] += amount
        if without_row:
            sums["n_without_row"] += 1
        if isinstance(row, LedgerRow) and row.status == 200:
            self._latencies[hour, group, bucket_of(row.latency_ms)] += 1
        for charge in bill:
            if charge.busy_s:
                self._busy[hour, charge.machine, ""] += charge.busy_s

    def write(self, write: Write, known: set[int]) -> None:
        """Add all to the sums. `known` are groups that are recorded for certain."""
        groups = {(id,): self.groups[id] for id in self.groups.keys() - known}
        sums = {key: [more.get(name, 0) for name in AMOUNTS] for key, more in self._sums.items()}
        work: tuple[tuple[Table, tuple[str, ...], Mapping[Any, Sequence[Any]], tuple[str, ...]], ...] = (
            (GROUPS, DIMENSIONS, groups, ()),
            (SUMS, tuple(AMOUNTS), sums, tuple(AMOUNTS)),
            (LATENCIES, ("n",), {key: [n] for key, n in self._latencies.items()}, ("n",)),
            (MACHINES, ("busy_s",), {key: [busy_s] for key, busy_s in self._busy.items()}, ("busy_s",)),
        )
        for table, names, found, add in work:
            columns = [*(key.name for key in table.primary_key), *names]
            # In one order, so that two processes never wait for each other.
            rows = [dict(zip(columns, (*key, *found[key]), strict=True)) for key in sorted(found)]
            if rows:
                write(table, rows, add)


def hour_of(moment: datetime, *, up: bool = False) -> int:
    """Return the hour since 1970 in which a moment is; `up`: the first that does not begin before it."""
    hours = moment.timestamp() / HOUR_S
    return math.ceil(hours) if up else math.floor(hours)


def within(hour: ColumnElement[int], since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    """Return the conditions that an hour has a part in [since, until)."""
    return [
        *([hour >= hour_of(since)] if since else []),
        *([hour < hour_of(until, up=True)] if until else []),
    ]
