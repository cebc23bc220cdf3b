"""The ledger: one row per request, attempt, audit, feedback and change of state, written at once and never changed.

Sums by hour are kept in the same transaction. A killed process loses nothing; a power cut may lose the last moments of
a SQLite file (WAL, `synchronous=NORMAL`) but never breaks it. Questions and answers, if they are kept at all, are in a
table of their own, redacted, and are deleted after some days.
"""

from __future__ import annotations

import asyncio
import csv
import logging
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    Table,
    case,
    literal,
    select,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.base.paths import ledger_place
from smallfirst.data.redaction import redact
from smallfirst.ledger.database import (
    ABOUT,
    BODIES,
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
from smallfirst.ledger.reader import BODY, CHUNK, LedgerReader, body_id
from smallfirst.ledger.rows import (
    AuditRow,
    Entry,
    FeedbackRow,
    LedgerRow,
)
from smallfirst.ledger.shared_state import SharedState
from smallfirst.ledger.sums import (
    AMOUNTS,
    DIMENSIONS,
    HOUR_S,
    Rollup,
    hour_of,
    outcome_of,
)

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


class Ledger(LedgerReader):
    """Append-only rows in a SQLite file or in PostgreSQL. Any thread may append and read, other processes too."""

    def __init__(
        self,
        place: Path | str,
        *,
        keep_bodies_days: int = KEEP_DAYS,
        keep_rows_days: int | None = None,
        export_to: Path | None = None,
    ) -> None:
        """Open or create the ledger at a path or a URL (`postgresql://USER@HOST/DATABASE`). Raise ConfigError.

        A file is readable by its owner only. Questions and answers are deleted after `keep_bodies_days`. Rows of
        requests go after `keep_rows_days` days, if given, once they are in a CSV file in the folder `export_to`, if
        given; sums, audits, states and expenses stay.
        """
        super().__init__(open_database(place), keep_bodies=timedelta(days=keep_bodies_days))
        self._writer: GroupCommitWriter[tuple[Entry | Executable, ...]] = GroupCommitWriter(self._write, name="ledger")
        self._closed = threading.Event()
        self._uptime: threading.Thread | None = None
        self._keep_rows_days, self._export_to = keep_rows_days, export_to
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
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self.append, *rows))
        else:
            await self._writer.put_async(rows)

    def _bodies_of(self, rows: Sequence[Entry]) -> Iterator[Executable]:
        """Yield the statements that keep the texts of entries, redacted."""
        insert, now = self.database.insert(BODIES), datetime.now(UTC)
        columns = ("request_text", "answer_text")
        for row in rows:
            if names := _body_of(row):
                texts = dict(zip(columns, (_redacted(getattr(row, name)) for name in names), strict=True))
                later = {name: insert.excluded[name] for name in ("at", *columns)}
                new = insert.values(id=body_id(row), at=now, **texts)
                yield new.on_conflict_do_update(index_elements=["id"], set_=later)

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
            noted = case((t.noted_until > begin, t.noted_until), else_=literal(begin))
            known = {"up_s": t.up_s + case((noted < end, end - noted), else_=0.0),
                     "noted_until": case((t.noted_until > end, t.noted_until), else_=end)}  # fmt: skip
            row = insert.values(
                hour=hour, machine=machine, host=socket.gethostname(), up_s=end - begin, noted_until=end
            )
            self._writer.put((row.on_conflict_do_update(index_elements=["hour", "machine", "host"], set_=known),))
            begin = end

    def expire_bodies(self) -> int:
        """Delete the questions and answers that are too old, whether or not new ones are kept; return their number."""
        old = select(BODIES.c.id).where(BODIES.c.at < datetime.now(UTC) - self._keep_bodies)
        n_deleted = self._delete(BODIES.c.id, old)
        if n_deleted and self.path:  # the write-ahead log, which holds older pages, is emptied as well
            with self.database.writer.connect() as connection:
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return n_deleted

    def expire_rows(self, before: datetime, *, export_to: Path | None = None) -> int:
        """Delete the rows of requests before a moment and return their number; sums and all other kinds stay.

        They are written to files in the folder `export_to` first, if given. Raise LedgerUnavailable.
        """
        n_deleted = 0
        self._writer.put((ABOUT.update().values(rows_since=before),))
        for kind in EXPIRING:
            table = TABLES[kind]
            old = select(table.c.seq).where(table.c.at < before)
            if export_to and self._read(old.limit(1)):
                names = (
                    f"{table.name}-before-{before:%Y-%m-%d}{again}.csv"
                    for again in chain([""], map("-{}".format, count(2)))
                )
                self.export(kind, next(out for name in names if not (out := export_to / name).exists()), until=before)
            n_deleted += self._delete(table.c.seq, old)
        return n_deleted

    def _delete(self, key: ColumnElement[Any], old: Select[Any]) -> int:
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
            if any(into.execute(select(table).limit(1)).first() for table in TABLES.values()):
                raise ConfigError(f"{new.place} has rows already", hint="copy into a new database")
            into.execute(ABOUT.delete())
            for table in METADATA.sorted_tables:
                names = [column for column in table.columns if column.name != "seq"]
                wanted, found[table.name] = select(*names).order_by(*table.primary_key.columns), 0
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
        self._writer.close()
        self.database.close()

    def _expire_regularly(self) -> None:
        while not self._closed.is_set():
            try:
                self.expire_bodies()
                if self._keep_rows_days is not None and (newest := self.rows(limit=1)):
                    # A clock that is ahead deletes nothing before the first row with its time.
                    today = min(datetime.now(UTC), newest[0].at).replace(hour=0, minute=0, second=0, microsecond=0)
                    self.expire_rows(today - timedelta(days=self._keep_rows_days), export_to=self._export_to)
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

    def _write(self, entries: Sequence[tuple[Entry | Executable, ...]]) -> None:
        rollup, statements = Rollup(), []
        kept: dict[type[Entry], list[dict[str, Any]]] = defaultdict(list)
        for entry in entries:
            for one in entry:
                if isinstance(one, Executable):
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
        found: tuple[tuple[Table, Mapping[Any, Mapping[str, Any]], Sequence[str]], ...] = (
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
