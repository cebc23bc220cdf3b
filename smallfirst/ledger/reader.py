"""Reading a ledger: entries of a kind, and the sums over them. Each read has a connection of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Boolean, ColumnElement, Row, Select, Table, func, literal, select
from sqlalchemy.exc import SQLAlchemyError

from smallfirst.ledger.database import (
    BODIES,
    GROUPS,
    LATENCIES,
    MACHINES,
    SUMS,
    TABLES,
    Database,
    unavailable,
)
from smallfirst.ledger.rows import (
    AttemptRow,
    AuditRow,
    DraftRow,
    Entry,
    ExpenseRow,
    FeedbackRow,
    LedgerRow,
    ShadowRow,
    StateRow,
)
from smallfirst.ledger.sums import AMOUNTS, DIMENSIONS, HOUR_S, Dimension, Period, Sums, hour_of

CHUNK = 5_000
"""Rows that are read or deleted at once."""
MOST_AUDITS = 500
"""Audits that are read at once, to be applied without a pause: some 50 ms."""
_LENGTH = {"hour": 13, "day": 10, "month": 7}
BODY: dict[type[Entry], tuple[str, str]] = {
    LedgerRow: ("request_text", "answer_text"),
    AuditRow: ("draft", "other"),
    DraftRow: ("draft", "other"),
}
"""Fields of an entry that are kept apart from its row."""

E = TypeVar("E", LedgerRow, AttemptRow, AuditRow, DraftRow, ShadowRow, FeedbackRow, StateRow, ExpenseRow)


class LedgerReader:
    """The reading half of a Ledger."""

    def __init__(self, database: Database, *, keep_bodies: timedelta) -> None:
        self.database, self._keep_bodies = database, keep_bodies
        self.path, self.place = database.path, database.place

    def rows(self, since: datetime | None = None, limit: int | None = None) -> tuple[LedgerRow, ...]:
        """Return the rows at or after `since`, the newest `limit` of them, in the order of writing."""
        return self.entries(LedgerRow, since=since, limit=limit)

    def entries(
        self, kind: type[E], *, since: datetime | None = None, limit: int | None = None, **equal: str
    ) -> tuple[E, ...]:
        """Return the entries of a kind whose fields equal those given (`task="tickets"`), limited as in `rows`."""
        table = TABLES[kind]
        found = self._read(_select(kind, since, None, equal).order_by(table.c.seq.desc()).limit(limit))
        rows = [_entry(kind, row) for row in reversed(found)]
        if (names := BODY.get(kind)) is None:
            return tuple(rows)
        oldest, bodies = datetime.now(UTC) - self._keep_bodies, dict[str, Mapping[str, Any]]()
        wanted = select(BODIES.c.id, BODIES.c.request_text, BODIES.c.answer_text).where(BODIES.c.at >= oldest)
        for start in range(0, len(rows), 500):
            ids = [body_id(row) for row in rows[start : start + 500]]
            for kept in self._read(wanted.where(BODIES.c.id.in_(ids))):
                bodies[kept.id] = dict(zip(names, kept[1:], strict=True))
        return tuple(row.model_copy(update=bodies.get(body_id(row), {})) for row in rows)

    def count(self, kind: type[E], **equal: str) -> int:
        """Return the number of entries of a kind whose fields equal those given."""
        ((n,),) = self._read(_select(kind, None, None, equal).with_only_columns(func.count()))
        return int(n)

    def scan(
        self, kind: type[E], since: datetime | None = None, until: datetime | None = None, **equal: str
    ) -> Iterator[E]:
        """Yield the entries of a kind in [since, until), one after the other in the order of writing, without texts.

        They are read a chunk at a time, so that a million of them needs no memory.
        """
        seq = TABLES[kind].c.seq
        wanted, last = _select(kind, since, until, equal), 0
        ((first, end),) = map(tuple, self._read(wanted.with_only_columns(func.min(seq), func.max(seq))))
        last = (first or 1) - 1
        while end is not None and last < end:
            found = self._read(wanted.add_columns(seq).where(seq > last, seq <= end).order_by(seq).limit(CHUNK))
            if not found:
                return
            yield from (_entry(kind, row) for row in found)
            last = found[-1].seq

    def get(self, id: str) -> LedgerRow | None:
        found = self.entries(LedgerRow, id=id)
        return found[0] if found else None

    def audits(self, task: str, certificate: str, *, after: int = 0) -> Sequence[Any]:
        """Return the audits of a certificate after the one with this `seq`, in their order, at most MOST_AUDITS.

        Raise LedgerUnavailable.
        """
        of = TABLES[AuditRow].c
        query = select(of.seq, of.at, of.answered_at, of.wrong, of.weight, of.certified)
        query = query.where(of.task == task, of.certificate == certificate, of.seq > after)
        try:
            with self.database.reader.connect() as connection:
                return connection.execute(query.order_by(of.seq).limit(MOST_AUDITS)).all()
        except SQLAlchemyError as error:
            raise unavailable(self.place, "gives no row", error) from None

    def sums(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        by: Sequence[Dimension] = ("task", "stage"),
        every: Period | None = None,
        latencies: bool = True,
        **equal: str,
    ) -> tuple[Sums, ...]:
        """Return sums over the hours that have a part in [since, until), by these fields and by hour, day or month.

        Earliest first, in UTC. `equal` keeps rows whose fields have these values (`task="tickets"`). No row is read:
        those that went stay counted. Without `latencies`, of which there are many, the others come faster.
        """
        for name in equal:
            if name not in DIMENSIONS:
                raise KeyError(name)

        def grouped(table: Table, *amounts: str) -> Select[Any]:
            """Return a SELECT of the period's first hour, `by`, then sums of `amounts`."""
            hours = 1 if every == "hour" else 24
            period = table.c.hour // hours * hours if every else literal(0)
            numbers = [period.label("period"), table.c.group_id, *([table.c.bucket] if table is LATENCIES else [])]
            groups = select(GROUPS.c.id).where(*(GROUPS.c[name] == value for name, value in equal.items()))
            where = [*_within(table.c.hour, since, until), *([table.c.group_id.in_(groups)] if equal else [])]
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

        with self.database.reader.connect() as connection:
            for row in connection.execute(grouped(SUMS, *AMOUNTS)):
                sums = at(row)
                for name, amount in zip(AMOUNTS, row[n_keys:], strict=True):
                    sums[name] += AMOUNTS[name](amount)  # PostgreSQL's sum of integers is a Decimal
            for row in connection.execute(grouped(LATENCIES, "n")) if latencies else ():
                buckets = at(row)["latency_ms_buckets"]
                buckets[row[-2]] = buckets.get(row[-2], 0) + int(row[-1])
        names = ("period", *by)
        return tuple(Sums.model_validate({**dict(zip(names, key, strict=True)), **found[key]}) for key in sorted(found))

    def audited_costs(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> list[tuple[str, float, float]]:
        """Return task, propensity and the judge's cost in USD of audits by the large model of certified answers."""
        audits, answers = TABLES[AuditRow], TABLES[LedgerRow]
        wanted = select(audits.c.task, audits.c.propensity, audits.c.cost_usd).join_from(
            audits, answers, audits.c.id == answers.c.id
        )
        wanted = wanted.where(answers.c.certified.is_(True), audits.c.judged_by == "large")
        return [tuple(row) for row in self._read(wanted.where(*_during(audits, since, until)).order_by(audits.c.seq))]

    def uptime(self, since: datetime | None = None, until: datetime | None = None) -> dict[str, float]:
        """Return the seconds for which servers ran in the hours of [since, until), by machine of the settings.

        Two hosts with the same name of a machine count twice.
        """
        return self._machine_s("up_s", since, until)

    def busy(self, since: datetime | None = None, until: datetime | None = None) -> dict[str, float]:
        """Return the seconds for which models worked in the hours of [since, until), by machine of the settings."""
        return self._machine_s("busy_s", since, until)

    def _machine_s(self, name: str, since: datetime | None, until: datetime | None) -> dict[str, float]:
        t = MACHINES.c
        found = select(t.machine, func.sum(t[name])).where(*_within(t.hour, since, until)).group_by(t.machine)
        return dict(map(tuple, self._read(found.having(func.sum(t[name]) > 0))))

    def _read(self, wanted: Select[Any]) -> Sequence[Row[Any]]:
        with self.database.reader.connect() as connection:
            return connection.execute(wanted).all()


def body_id(entry: Entry) -> str:
    """Return the id under which an entry's texts are kept."""
    return f"{TABLES[type(entry)].name}/{getattr(entry, 'id', '')}"


def _within(hour: ColumnElement[int], since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    """Return the conditions that an hour has a part in [since, until)."""
    return [
        *([hour >= hour_of(since)] if since else []),
        *([hour < hour_of(until, up=True)] if until else []),
    ]


def _during(table: Table, since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    return [*([table.c.at >= since] if since else []), *([table.c.at < until] if until else [])]


def _select(kind: type[Entry], since: datetime | None, until: datetime | None, equal: dict[str, str]) -> Select[Any]:
    table = TABLES[kind]
    where = _during(table, since, until)
    for name, value in equal.items():
        column = table.c[name]
        where.append(column.is_(value in ("1", "true")) if isinstance(column.type, Boolean) else column == value)
    return select(*(table.c[name] for name in kind.model_fields)).where(*where)


def _entry(kind: type[E], row: Row[Any]) -> E:
    return kind.model_validate(dict(zip(kind.model_fields, row, strict=False)))  # `scan` adds a column at the end
