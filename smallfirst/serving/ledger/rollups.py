"""Sums by hour, written in the transaction of the rows that they count: a month is read without reading its rows."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, func, literal, select

from smallfirst.serving.ledger.rows import Entry, LedgerRow
from smallfirst.serving.ledger.sums import (
    AMOUNTS,
    DIMENSIONS,
    SUMMED,
    Dimension,
    Period,
    Sums,
    amounts_of,
    bill_of,
    bucket_of,
    facts_of,
)
from smallfirst.serving.ledger.tables import GROUPS, LATENCIES, MACHINES, SUMS

Write = Callable[[Table, Sequence[Mapping[str, Any]], Sequence[str]], None]
HOUR_S = 3600
_LENGTH = {"hour": 13, "day": 10, "month": 7}


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
        facts, hour, bill = facts_of(row), hour_of(row.at), bill_of(row)
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


def read_sums(
    connection: Connection,
    since: datetime | None,
    until: datetime | None,
    *,
    by: Sequence[Dimension],
    every: Period | None,
    equal: Mapping[str, str],
    latencies: bool = True,
) -> tuple[Sums, ...]:
    """See `Ledger.sums`."""
    for name in equal:
        if name not in DIMENSIONS:
            raise KeyError(name)

    def grouped(table: Table, *amounts: str) -> Select[Any]:
        """Return a SELECT of the period's first hour, `by`, then sums of `amounts`."""
        hours = 1 if every == "hour" else 24
        period = table.c.hour // hours * hours if every else literal(0)
        numbers = [period.label("period"), table.c.group_id, *([table.c.bucket] if table is LATENCIES else [])]
        groups = select(GROUPS.c.id).where(*(GROUPS.c[name] == value for name, value in equal.items()))
        where = [*within(table.c.hour, since, until), *([table.c.group_id.in_(groups)] if equal else [])]
        # By numbers first: there are many rows, and to sort texts takes long.
        sums = [func.sum(table.c[name]).label(name) for name in amounts]
        some = select(*numbers, *sums).where(*where).group_by(*numbers).subquery()
        keys = [some.c.period, *(GROUPS.c[name] for name in by), *([some.c.bucket] if table is LATENCIES else [])]
        found = select(*keys, *(func.sum(some.c[name]) for name in amounts))
        return found.join_from(some, GROUPS, some.c.group_id == GROUPS.c.id).group_by(*keys)

    found: dict[tuple[str, ...], dict[str, Any]] = {}
    n_keys = 1 + len(by)

    def at(row: Sequence[Any]) -> dict[str, Any]:
        period = datetime.fromtimestamp(row[0] * HOUR_S, UTC).isoformat()[: _LENGTH[every]] if every else ""
        return found.setdefault((period, *row[1:n_keys]), {"latency_ms_buckets": {}, **dict.fromkeys(AMOUNTS, 0)})

    for row in connection.execute(grouped(SUMS, *AMOUNTS)):
        sums = at(row)
        for name, amount in zip(AMOUNTS, row[n_keys:], strict=True):
            sums[name] += AMOUNTS[name](amount)  # PostgreSQL's sum of integers is a Decimal
    for row in connection.execute(grouped(LATENCIES, "n")) if latencies else ():
        buckets = at(row)["latency_ms_buckets"]
        buckets[row[-2]] = buckets.get(row[-2], 0) + int(row[-1])
    names = ("period", *by)
    return tuple(Sums.model_validate({**dict(zip(names, key, strict=True)), **found[key]}) for key in sorted(found))
