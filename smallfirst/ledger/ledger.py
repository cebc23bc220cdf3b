"""The ledger: one row per request, attempt, audit, feedback and change of state, written at once and never changed.

Sums by hour are kept in the same transaction. A killed process loses nothing; a power cut may lose the last moments of
a SQLite file (WAL, `synchronous=NORMAL`) but never breaks it. Questions and answers, if they are kept at all, are in a
table of their own, redacted, and are deleted after some days. Each read has a connection of its own.
"""

from __future__ import annotations

import asyncio
import csv
import logging
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.base.paths import ledger_place
from smallfirst.data.redaction import redact
from smallfirst.ledger.database import (
    ABOUT,
    BODIES,
    DRAWN,
    EXPIRING,
    GROUPS,
    LATENCIES,
    MACHINES,
    METADATA,
    SUMS,
    TABLES,
    LedgerAway,
    LedgerUnavailable,
    open_database,
    reason,
    unavailable,
    utc_text,
    without_nul,
)
from smallfirst.ledger.group_commit import GroupCommitWriter
from smallfirst.ledger.rows import AttemptRow, AuditRow, Entry, ExpenseRow, FeedbackRow, LedgerRow, ShadowRow, StateRow
from smallfirst.ledger.shared_state import SharedState
from smallfirst.ledger.sums import AMOUNTS, DIMENSIONS, HOUR_S, Dimension, Period, Rollup, Sums, hour_of, outcome_of
from smallfirst.models.stages import NOT_SMALL

CHUNK = 5_000
"""Rows that are read or deleted at once."""
VERDICT_WITHIN = timedelta(hours=1)
"""Age of an answer from which on a verdict that chance asked for is missing."""
MOST_AUDITS = 500
"""Audits that are read at once, to be applied without a pause: some 50 ms."""
_LENGTH = {"hour": 13, "day": 10, "month": 7}
BODY: dict[type[Entry], tuple[str, str]] = {LedgerRow: ("request_text", "answer_text"), AuditRow: ("draft", "other")}
"""Fields of an entry that are kept apart from its row."""

E = TypeVar("E", LedgerRow, AttemptRow, AuditRow, ShadowRow, FeedbackRow, StateRow, ExpenseRow)


__all__ = ["Ledger", "LedgerAway", "LedgerRow", "LedgerUnavailable"]

_log = logging.getLogger("smallfirst.serving")

KEEP_DAYS = 30
"""Days for which questions and answers are kept."""
MAX_CHARACTERS = 200_000
"""Longest question or answer that is kept; a longer one is dropped, since half of a conversation is no valid JSON."""
EXPIRY_INTERVAL_S = 600.0
"""Seconds between two deletions of what is too old."""
UPTIME_INTERVAL_S = 60.0
"""Seconds between two notes that a server is up; what a killed one was up since the last is lost."""
REFUSED_ROWS = 100
"""Refused requests of one owner with one code that have a row in an hour; those beyond are counted in the sums alone.
Each process counts its own, from its start."""


class AlreadyRecorded(SmallfirstError):
    """The ledger holds another row of this kind about the same answer: each verdict of an audit is there once."""


def open_existing(place: Path | str | None = None) -> Ledger | None:
    """Open the ledger at a path or URL, by default `paths.ledger_place`; None where no such file is.

    Raise ConfigError if it cannot be used.
    """
    place = place or ledger_place()
    return None if isinstance(place, Path) and not place.is_file() else Ledger(place)


class Ledger:
    """Append-only rows in a SQLite file or in PostgreSQL. Any thread may append and read, other processes too."""

    def __init__(
        self, place: Path | str, *, keep_bodies_days: int = KEEP_DAYS, keep_rows_days: int | None = None
    ) -> None:
        """Open or create the ledger at a path or a URL (`postgresql://USER@HOST/DATABASE`). Raise ConfigError.

        A file is readable by its owner only. Questions and answers are deleted after `keep_bodies_days`. Rows of
        requests go after `keep_rows_days` days, if given; sums, audits, states and expenses stay.
        """
        self.database, self._keep_bodies = open_database(place), timedelta(days=keep_bodies_days)
        self.path, self.place = self.database.path, self.database.place
        self._writer: GroupCommitWriter[tuple[Entry | sa.Executable, ...]] = GroupCommitWriter(
            self._write, name="ledger"
        )
        self._redaction = ThreadPoolExecutor(thread_name_prefix="redaction")
        self._closed = threading.Event()
        self._uptime: threading.Thread | None = None
        self._keep_rows_days = keep_rows_days
        self.shared = SharedState(self.database)
        self._groups: set[int] = set()
        self._failing = False
        self._refused: Counter[tuple[int, str | None, str | None]] = Counter()

    def append(self, *rows: Entry) -> None:
        """Write all rows or none; once this returns, they survive the death of the process. Raise LedgerUnavailable."""
        self._writer.put((*rows, *self._bodies_of(rows)))

    async def append_async(self, *rows: Entry) -> None:
        """Write all rows or none without blocking the event loop, even if the caller is cancelled.

        Raise LedgerUnavailable.
        """
        if any(map(_body_of, rows)):  # to redact takes time
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._redaction, self.append, *rows))
        else:
            await self._writer.put_async(rows)

    def _bodies_of(self, rows: Sequence[Entry]) -> Iterator[sa.Executable]:
        """Yield the statements that keep the texts of entries, redacted."""
        insert, now = self.database.insert(BODIES), datetime.now(UTC)
        columns = ("request_text", "answer_text")
        for row in rows:
            if names := _body_of(row):
                texts = dict(zip(columns, (_redacted(getattr(row, name)) for name in names), strict=True))
                later = {name: insert.excluded[name] for name in ("at", *columns)}
                new = insert.values(id=body_id(row), at=now, **texts)
                yield new.on_conflict_do_update(index_elements=["id"], set_=later)

    @property
    def is_failing(self) -> bool:
        """True if the last row could not be written."""
        return self._failing

    async def ready(self) -> None:
        """Write a transaction that changes nothing. Raise LedgerUnavailable if no row could be written now."""
        await self._writer.put_async((ABOUT.update().values(format=ABOUT.c.format),))

    async def check(self) -> None:
        """Raise LedgerAway if the last row could not be written, and none can be now."""
        try:
            if self._failing:
                await self.ready()
        except LedgerUnavailable as error:
            raise LedgerAway(error.args[0], hint=error.hint) from None

    def note_uptime(self, since: datetime, until: datetime, machine: str = "") -> None:
        """Note that this host, priced as `machine` of the settings, was up in [since, until).

        Times that overlap, of several servers on one host, count once. Raise LedgerUnavailable.
        """
        begin, insert, t = since.timestamp(), self.database.insert(MACHINES), MACHINES.c
        while begin < until.timestamp():
            hour = int(begin // HOUR_S)
            end = min((hour + 1) * HOUR_S, until.timestamp())
            noted = sa.case((t.noted_until > begin, t.noted_until), else_=sa.literal(begin))
            known = {"up_s": t.up_s + sa.case((noted < end, end - noted), else_=0.0),
                     "noted_until": sa.case((t.noted_until > end, t.noted_until), else_=end)}  # fmt: skip
            row = insert.values(
                hour=hour, machine=machine, host=socket.gethostname(), up_s=end - begin, noted_until=end
            )
            self._writer.put((row.on_conflict_do_update(index_elements=["hour", "machine", "host"], set_=known),))
            begin = end

    def expire_bodies(self) -> int:
        """Delete the questions and answers that are too old, whether or not new ones are kept; return their number."""
        return self._delete_bodies(BODIES.c.at < datetime.now(UTC) - self._keep_bodies)

    def count_bodies(self, task: str) -> int:
        """Return of how many answers and audits of a task the texts are kept."""
        ((n,),) = self._read(sa.select(sa.func.count()).select_from(BODIES).where(_bodies_of_task(task)))
        return int(n)

    def forget_bodies(self, task: str) -> int:
        """Delete the questions and answers of a task; return their number. Its rows, which hold none, stay."""
        return self._delete_bodies(_bodies_of_task(task))

    def _delete_bodies(self, which: sa.ColumnElement[bool]) -> int:
        n_deleted = self._delete(BODIES.c.id, sa.select(BODIES.c.id).where(which))
        if n_deleted and self.path:  # the write-ahead log, which holds older pages, is emptied as well
            with self.database.writer.connect() as connection:
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return n_deleted

    def expire_rows(self, before: datetime) -> int:
        """Delete the rows of requests before a moment and return their number; sums and all other kinds stay.

        Raise LedgerUnavailable.
        """
        self._writer.put((ABOUT.update().values(rows_since=before),))
        self._keep_drawn(before)
        tables = [TABLES[kind] for kind in EXPIRING]
        return sum(self._delete(t.c.seq, sa.select(t.c.seq).where(t.c.at < before)) for t in tables)

    def _keep_drawn(self, before: datetime) -> None:
        """Copy what audits need of the answers before a moment: savings and counts of audits stay as they were."""
        answers, audits = TABLES[LedgerRow].c, TABLES[AuditRow].c
        judged = answers.audited.is_(True) | sa.exists().where(audits.id == answers.id)
        old = sa.select(*(answers[c.name] for c in DRAWN.c)).where(answers.at < before, judged)
        insert = self.database.insert(DRAWN).from_select([c.name for c in DRAWN.c], old)
        self._writer.put((insert.on_conflict_do_nothing(),))

    def _delete(self, key: sa.ColumnElement[Any], old: sa.Select[Any]) -> int:
        """Delete rows whose keys `old` finds, in parts, between which others write; return their number."""
        n_deleted = 0
        while found := self._read(old.limit(CHUNK)):
            self._writer.put((key.table.delete().where(key.in_([row[0] for row in found])),))
            n_deleted += len(found)
        return n_deleted

    def export(
        self, kind: type[Entry], out: Path, *, since: datetime | None = None, until: datetime | None = None
    ) -> int:
        """Write the rows of a kind in [since, until), without texts, to a CSV file; return their number.

        The file appears when it is complete.
        """
        out.parent.mkdir(parents=True, exist_ok=True)
        part, n_rows = out.with_name(f".{out.name}.part"), 0
        try:
            with part.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(kind.model_fields))
                writer.writeheader()
                for row in self.scan(kind, since, until):  # type: ignore[type-var]
                    writer.writerow(row.model_dump() | {"at": row.at.isoformat()})
                    n_rows += 1
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
        return n_rows

    def copy_to(self, new: Ledger) -> dict[str, int]:
        """Copy everything into an empty ledger, or nothing; return the number of rows by table. Raise ConfigError.

        Nobody should write to this one meanwhile.
        """
        found: dict[str, int] = {}
        with new.database.writer.begin() as into, self.database.reader.connect() as from_:
            if any(into.execute(sa.select(table).limit(1)).first() for table in TABLES.values()):
                raise ConfigError(f"{new.place} has rows already", hint="copy into a new database")
            into.execute(ABOUT.delete())
            for table in METADATA.sorted_tables:
                names = [column for column in table.columns if column.name != "seq"]
                wanted, found[table.name] = sa.select(*names).order_by(*table.primary_key.columns), 0
                for rows in from_.execution_options(yield_per=CHUNK).execute(wanted).mappings().partitions():
                    into.execute(table.insert(), [dict(row) for row in rows])
                    found[table.name] += len(rows)
        return found

    def start(self) -> None:
        """Note that this process serves, and delete what is too old, in threads until the ledger is closed."""
        threading.Thread(target=self._expire_regularly, name="expiry", daemon=True).start()
        self._uptime = threading.Thread(target=self._note_regularly, name="uptime", daemon=True)
        self._uptime.start()

    def close(self) -> None:
        """Wait for pending rows and close the database. Safe to call twice."""
        self._closed.set()
        if self._uptime is not None:
            self._uptime.join()
        self._redaction.shutdown()  # rows whose texts are redacted are pending too
        self._writer.close()
        self.database.close()

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
        wanted = sa.select(BODIES.c.id, BODIES.c.request_text, BODIES.c.answer_text).where(BODIES.c.at >= oldest)
        for start in range(0, len(rows), 500):
            ids = [body_id(row) for row in rows[start : start + 500]]
            for kept in self._read(wanted.where(BODIES.c.id.in_(ids))):
                bodies[kept.id] = dict(zip(names, kept[1:], strict=True))
        return tuple(row.model_copy(update=bodies.get(body_id(row), {})) for row in rows)

    def count(self, kind: type[E], **equal: str) -> int:
        """Return the number of entries of a kind whose fields equal those given."""
        ((n,),) = self._read(_select(kind, None, None, equal).with_only_columns(sa.func.count()))
        return int(n)

    def scan(
        self, kind: type[E], since: datetime | None = None, until: datetime | None = None, **equal: str
    ) -> Iterator[E]:
        """Yield the entries of a kind in [since, until), one after the other in the order of writing, without texts.

        They are read a chunk at a time, so that a million of them needs no memory.
        """
        seq = TABLES[kind].c.seq
        wanted, last = _select(kind, since, until, equal), 0
        ((first, end),) = map(tuple, self._read(wanted.with_only_columns(sa.func.min(seq), sa.func.max(seq))))
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

    def judged(self, id: str) -> tuple[str | None, bool]:
        """Return stage of an audited answer and whether it was certified, also once its row has expired."""
        for table in (TABLES[LedgerRow], DRAWN):
            for row in self._read(sa.select(table.c.stage, table.c.certified).where(table.c.id == id)):
                return row.stage, bool(row.certified)
        return None, False

    def audits(self, task: str, certificate: str, *, after: int = 0) -> Sequence[Any]:
        """Return the audits of a certificate after the one with this `seq`, in their order, at most MOST_AUDITS.

        Raise LedgerUnavailable.
        """
        of = TABLES[AuditRow].c
        query = sa.select(of.seq, of.at, of.answered_at, of.wrong, of.weight, of.certified)
        query = query.where(of.task == task, of.certificate == certificate, of.seq > after, of.judged_by != "nobody")
        try:
            with self.database.reader.connect() as connection:
                return connection.execute(query.order_by(of.seq).limit(MOST_AUDITS)).all()
        except SQLAlchemyError as error:
            raise unavailable(self.place, "gives no row", error) from None

    def drawn(self, since: datetime, until: datetime, **equal: str) -> Mapping[str, tuple[str, str]]:
        """Return by id the task of each small answer in [since, until) that chance drew, and its judge or `nobody`.

        Younger ones than VERDICT_WITHIN are left out: their verdict may be under way.
        """
        audits, until = TABLES[AuditRow], min(until, datetime.now(UTC) - VERDICT_WITHIN)
        equal, names = {"audited": "1", **equal}, [column.name for column in DRAWN.c]
        kept = sa.select(*DRAWN.c).where(*_where(DRAWN, since, until, equal))
        there = _select(LedgerRow, since, until, equal).with_only_columns(*(TABLES[LedgerRow].c[n] for n in names))
        drawn = there.union_all(kept).subquery()
        wanted = sa.select(drawn.c.id, drawn.c.task, audits.c.judged_by)
        wanted = wanted.where(
            drawn.c.status == 200, drawn.c.stage.not_in(NOT_SMALL), drawn.c.task != ""
        ).outerjoin_from(drawn, audits, drawn.c.id == audits.c.id)
        return {row.id: (row.task, row.judged_by or "nobody") for row in self._read(wanted)}

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

        def grouped(table: sa.Table, *amounts: str) -> sa.Select[Any]:
            """Return a SELECT of the period's first hour, `by`, then sums of `amounts`."""
            hours = 1 if every == "hour" else 24
            period = table.c.hour // hours * hours if every else sa.literal(0)
            numbers = [period.label("period"), table.c.group_id, *([table.c.bucket] if table is LATENCIES else [])]
            groups = sa.select(GROUPS.c.id).where(
                *(GROUPS.c[name] == without_nul(value) for name, value in equal.items())
            )
            where = [*_within(table.c.hour, since, until), *([table.c.group_id.in_(groups)] if equal else [])]
            # By numbers first: there are many rows, and to sort texts takes long.
            sums = [sa.func.sum(table.c[name]).label(name) for name in amounts]
            some = sa.select(*numbers, *sums).where(*where).group_by(*numbers).subquery()
            keys = [some.c.period, *(GROUPS.c[name] for name in by), *([some.c.bucket] if table is LATENCIES else [])]
            found = sa.select(*keys, *(sa.func.sum(some.c[name]) for name in amounts))
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
        wanted = sa.select(audits.c.task, audits.c.propensity, audits.c.cost_usd).join_from(
            audits, answers, audits.c.id == answers.c.id, isouter=True
        )
        wanted = wanted.outerjoin(DRAWN, audits.c.id == DRAWN.c.id)
        certified = sa.func.coalesce(answers.c.certified, DRAWN.c.certified)
        wanted = wanted.where(certified.is_(True), audits.c.judged_by == "large")
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
        found = sa.select(t.machine, sa.func.sum(t[name])).where(*_within(t.hour, since, until)).group_by(t.machine)
        return dict(map(tuple, self._read(found.having(sa.func.sum(t[name]) > 0))))

    def _read(self, wanted: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self.database.reader.connect() as connection:
            return connection.execute(wanted).all()

    def _expire_regularly(self) -> None:
        while not self._closed.is_set():
            try:
                self.expire_bodies()
                if self._keep_rows_days is not None and (newest := self.rows(limit=1)):
                    # A clock that is ahead deletes nothing before the first row with its time.
                    today = min(datetime.now(UTC), newest[0].at).replace(hour=0, minute=0, second=0, microsecond=0)
                    self.expire_rows(today - timedelta(days=self._keep_rows_days))
            except (SQLAlchemyError, SmallfirstError, OSError, RuntimeError) as error:
                _log.warning("%s: nothing was deleted: %s", self.place, error)
            self._closed.wait(EXPIRY_INTERVAL_S)

    def _note_regularly(self) -> None:
        noted, closed = datetime.now(UTC), False
        while not closed:
            closed = self._closed.wait(UPTIME_INTERVAL_S)
            now = datetime.now(UTC)
            # A clock that went back or a computer that slept is no time up.
            begin = max(noted, now - timedelta(seconds=2 * UPTIME_INTERVAL_S))
            try:
                self.note_uptime(begin, now)
            except LedgerUnavailable as error:
                _log.warning("%s", error)
            noted = now

    def _write(self, entries: Sequence[tuple[Entry | sa.Executable, ...]]) -> None:
        rollup, statements = Rollup(), []
        kept: dict[type[Entry], list[dict[str, Any]]] = defaultdict(list)
        for entry in entries:
            for one in entry:
                if isinstance(one, sa.Executable):
                    statements.append(one)
                    continue
                counted_only = len(entry) == 1 and isinstance(one, LedgerRow) and self._is_beyond_cap(one)
                rollup.add(one, without_row=counted_only)
                if not counted_only:
                    kept[type(one)].append(self._values(one))
        try:
            with self.database.writer.begin() as connection:
                write = partial(self.database.write, connection)
                for kind in sorted(kept, key=list(TABLES).index):  # changes of state after audits
                    if kind is AuditRow:
                        self.database.hold_order(connection)  # they are read in the order of writing
                    write(TABLES[kind], kept[kind])
                self._write_sums(write, rollup)
                for statement in statements:
                    connection.execute(statement)
        except IntegrityError as error:
            raise AlreadyRecorded(f"{self.place} has such a row already: {reason(error)}") from None
        except SQLAlchemyError as error:  # full, read-only, locked for too long, failing disk, no connection
            self._failing = True
            raise unavailable(self.place, "takes no row", error) from None
        self._failing = False
        self._groups |= rollup.groups.keys()

    def _write_sums(self, write: Any, rollup: Rollup) -> None:
        found: tuple[tuple[sa.Table, Mapping[Any, Mapping[str, Any]], Sequence[str]], ...] = (
            (GROUPS, {(id,): dict(zip(DIMENSIONS, rollup.groups[id], strict=True))
                      for id in rollup.groups.keys() - self._groups}, ()),
            (SUMS, {key: dict.fromkeys(AMOUNTS, 0) | more for key, more in rollup.sums.items()}, tuple(AMOUNTS)),
            (LATENCIES, {key: {"n": n} for key, n in rollup.latencies.items()}, ("n",)),
            (MACHINES, {key: {"busy_s": busy_s} for key, busy_s in rollup.busy_s.items()}, ("busy_s",)),
        )  # fmt: skip
        for table, amounts, add in found:
            keys = [key.name for key in table.primary_key]
            # In one order, so that two processes never wait for each other.
            if rows := [{**dict(zip(keys, key, strict=True)), **amounts[key]} for key in sorted(amounts)]:
                write(table, rows, add)

    def _values(self, row: Entry) -> dict[str, Any]:
        values = {**row.__dict__, **dict.fromkeys(BODY.get(type(row), ()))}
        if isinstance(row, FeedbackRow) and row.answer is not None:  # it was sent to be kept
            values["answer"] = redact(row.answer).text
        if self.path:
            values |= {name: utc_text(value) for name, value in values.items() if isinstance(value, datetime)}
        return values

    def _is_beyond_cap(self, row: LedgerRow) -> bool:
        """Count a refused request; return True if enough of its kind in this hour have a row."""
        if outcome_of(row) != "refused":
            return False
        key = (hour_of(row.at), row.owner, row.error_code)
        if key not in self._refused:
            self._refused = Counter({old: n for old, n in self._refused.items() if old[0] == key[0]})
        self._refused[key] += 1
        if self._refused[key] == REFUSED_ROWS + 1:
            _log.warning("%s: more than %d refusals %s of one caller in an hour: the rest is counted, without rows",
                         self.place, REFUSED_ROWS, row.error_code)  # fmt: skip
        return self._refused[key] > REFUSED_ROWS


def _body_of(entry: Entry) -> tuple[str, ...]:
    """Return the names of an entry's texts, if it carries any."""
    names = BODY.get(type(entry), ())
    return names if any(getattr(entry, name) is not None for name in names) else ()


def _redacted(text: str | None) -> str | None:
    """Redact a text, value by value if it is JSON; None for one that is too long."""
    return None if text is None or len(text) > MAX_CHARACTERS else redact(without_nul(text)).text


def body_id(entry: Entry) -> str:
    """Return the id under which an entry's texts are kept."""
    return f"{TABLES[type(entry)].name}/{getattr(entry, 'id', '')}"


def _bodies_of_task(task: str) -> sa.ColumnElement[bool]:
    tables = [TABLES[kind] for kind in BODY]
    ids = [sa.select(sa.literal(f"{t.name}/") + t.c.id).where(t.c.task == task) for t in tables]
    return BODIES.c.id.in_(sa.union_all(*ids))


def _within(
    hour: sa.ColumnElement[int], since: datetime | None, until: datetime | None
) -> list[sa.ColumnElement[bool]]:
    """Return the conditions that an hour has a part in [since, until)."""
    return [*([hour >= hour_of(since)] if since else []), *([hour < hour_of(until, up=True)] if until else [])]


def _during(table: sa.Table, since: datetime | None, until: datetime | None) -> list[sa.ColumnElement[bool]]:
    return [*([table.c.at >= since] if since else []), *([table.c.at < until] if until else [])]


def _select(kind: type[Entry], since: datetime | None, until: datetime | None, equal: dict[str, str]) -> sa.Select[Any]:
    table = TABLES[kind]
    return sa.select(*(table.c[name] for name in kind.model_fields)).where(*_where(table, since, until, equal))


def _where(
    table: sa.Table, since: datetime | None, until: datetime | None, equal: dict[str, str]
) -> list[sa.ColumnElement[bool]]:
    where = _during(table, since, until)
    for name, value in equal.items():
        column = table.c[name]
        is_bool = isinstance(column.type, sa.Boolean)
        where.append(column.is_(value in ("1", "true")) if is_bool else column == without_nul(value))
    return where


def _entry(kind: type[E], row: sa.Row[Any]) -> E:
    return kind.model_validate(dict(zip(kind.model_fields, row, strict=False)))  # `scan` adds a column at the end
