"""The database of a ledger: its tables, in a SQLite file or in PostgreSQL by its URL.

In SQLite readers do not block the writer (WAL). Triggers refuse changes and deletions of what was recorded.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args

import sqlalchemy as sa
from pydantic import AwareDatetime
from pydantic.fields import FieldInfo
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.schema import SchemaItem
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.ledger.rows import AttemptRow, AuditRow, Entry, ExpenseRow, FeedbackRow, LedgerRow, ShadowRow, StateRow
from smallfirst.ledger.sums import AMOUNTS, DIMENSIONS

FORMAT = 1
LOCK_TIMEOUT_S = 10
"""Longest wait for another process that writes."""
_LOCK = 8_347_201
"""PostgreSQL's advisory lock under which tables are made; the next number is that of `hold_order`."""
_FROZEN_S = 5
"""Seconds after which PostgreSQL ends a transaction whose process does not go on, so that others need not wait."""

METADATA = sa.MetaData()


class Moment(sa.TypeDecorator[datetime]):
    """A time: `timestamptz` in PostgreSQL; in SQLite text of a fixed width in UTC, whose order is the order in time."""

    impl, cache_ok = sa.Text, True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(sa.TIMESTAMP(timezone=True) if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else utc_text(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        return datetime.fromisoformat(value) if isinstance(value, str) else value and value.astimezone(UTC)


def utc_text(moment: datetime) -> str:
    """Format with a fixed width, so that order as text is order in time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


_TYPES: dict[Any, type[TypeEngine[Any]]] = {
    int: sa.BigInteger,
    float: sa.Double,
    bool: sa.Boolean,
    AwareDatetime: Moment,
}


def _column(name: str, field: FieldInfo) -> sa.Column[Any]:
    options = [*(get_args(field.annotation) or (field.annotation,))]
    return sa.Column(name, _TYPES.get(options[0], sa.Text)(), nullable=NoneType in options)


def _of(name: str, kind: type[Entry], *more: SchemaItem) -> sa.Table:
    key: sa.Column[int] = sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)
    columns = [_column(*field) for field in kind.model_fields.items()]
    return sa.Table(name, METADATA, key, *columns, *more, sqlite_autoincrement=True)


TABLES: dict[type[Entry], sa.Table] = {
    LedgerRow: _of(
        "answers",
        LedgerRow,
        sa.UniqueConstraint("id"),
        sa.Index("answers_at", "at"),
        sa.Index(
            "answers_drawn", "task", sqlite_where=sa.text("audited IS 1"), postgresql_where=sa.text("audited IS true")
        ),
    ),
    AttemptRow: _of("attempts", AttemptRow, sa.Index("attempts_id", "id")),
    AuditRow: _of("audits", AuditRow, sa.UniqueConstraint("id")),
    ShadowRow: _of("shadows", ShadowRow, sa.UniqueConstraint("task", "certificate", "text")),
    FeedbackRow: _of("feedback", FeedbackRow, sa.Index("feedback_id", "id")),
    StateRow: _of(
        "states", StateRow, sa.Index("states_once", "task", "certificate", "after_audit", "cause", unique=True)
    ),
    ExpenseRow: _of("expenses", ExpenseRow, sa.UniqueConstraint("id")),
}
KINDS = {table.name: kind for kind, table in TABLES.items()}
"""Kinds of entries by the names of their tables."""
EXPIRING = (LedgerRow, AttemptRow, FeedbackRow)
"""Kinds whose old rows may go. Audits, shadows, states and expenses stay: promise and statement stand on them."""

ABOUT = sa.Table("about", METADATA, sa.Column("format", sa.Integer, nullable=False), sa.Column("rows_since", Moment))
"""One row. Rows of EXPIRING before `rows_since` may be deleted; triggers refuse every other change."""


def _table(name: str, keys: Sequence[tuple[str, type[TypeEngine[Any]]]], *columns: SchemaItem) -> sa.Table:
    made = [sa.Column(key, kind(), primary_key=True, autoincrement=False) for key, kind in keys]
    return sa.Table(name, METADATA, *made, *columns, sqlite_with_rowid=False)


def _number(name: str, kind: type[TypeEngine[Any]]) -> sa.Column[Any]:
    return sa.Column(name, kind(), nullable=False, server_default=sa.text("0"))


GROUPS = _table(
    "sum_groups", [("id", sa.BigInteger)], *(sa.Column(name, sa.Text, nullable=False) for name in DIMENSIONS)
)
"""Each combination of the fields by which is summed; `id` is a hash of them."""
_HOUR = [("hour", sa.BigInteger), ("group_id", sa.BigInteger)]
SUMS = _table("sums", _HOUR, *(_number(name, _TYPES[kind]) for name, kind in AMOUNTS.items()))
"""Sums of an hour, which is counted from 1970 in UTC."""
LATENCIES = _table("latencies", [*_HOUR, ("bucket", sa.BigInteger)], _number("n", sa.BigInteger))
"""Answers of an hour by latency, in buckets as in `Sums`."""
MACHINES = _table(
    "machine_hours",
    [("hour", sa.BigInteger), ("machine", sa.Text), ("host", sa.Text)],
    *(_number(name, sa.Double) for name in ("up_s", "busy_s", "noted_until")),
)
"""Seconds of an hour for which a host was up, and, under the empty host, for which models worked."""
SHARED = _table(
    "shared", [("name", sa.Text)], _number("version", sa.BigInteger), sa.Column("value", sa.Text, nullable=False)
)
"""Values of `SharedState`."""
BODIES = _table(
    "bodies",
    [("id", sa.Text)],
    sa.Column("at", Moment, nullable=False),
    sa.Column("request_text", sa.Text),
    sa.Column("answer_text", sa.Text),
    sa.Index("bodies_at", "at"),
)
"""Texts of entries, redacted, apart from the append-only rows: they are deleted after some days."""
DRAWN = _table(
    "drawn",
    [("id", sa.Text)],
    sa.Column("at", Moment, nullable=False),
    sa.Column("task", sa.Text),
    sa.Column("stage", sa.Text),
    sa.Column("status", sa.BigInteger),
    sa.Column("certified", sa.Boolean),
    sa.Column("audited", sa.Boolean),
)
"""What audits need of the answers that chance drew for them, kept when the answers' rows expire."""
KEYS = _table(
    "keys",
    [("id", sa.Text)],
    *(sa.Column(name, sa.Text, nullable=False) for name in ("name", "sha256", "owner", "policy")),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("revoked_at", Moment),
    sa.Column("ends_at", Moment),
)
"""API keys, `policy` as JSON."""
LIMITS = _table(
    "limits", [("name", sa.Text)], *(_number(name, sa.Double) for name in ("level", "at", "per_minute", "taken"))
)
"""Token buckets of keys: units left at a time in seconds since 1970, and whether the last draw got what it wanted."""


class LedgerUnavailable(SmallfirstError):
    """A row could not be written or read: full disk, no permission, no connection. The next one is tried again."""

    retryable = True


class LedgerAway(LedgerUnavailable):
    """The ledger is known to take no row, before any model was asked."""


class Database(NamedTuple):
    """Where a ledger is."""

    place: str
    """Its path, or its URL without the password."""
    path: Path | None
    """None in PostgreSQL."""
    writer: sa.Engine
    """Holds one connection. A transaction of SQLite takes its lock at once."""
    reader: sa.Engine

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """Return an INSERT that may say what happens on a conflict."""
        return sqlite.insert(table) if self.path else postgresql.insert(table)

    def write(
        self, connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], add: Sequence[str] = ()
    ) -> None:
        """Insert rows; to those whose key is there already, add the columns `add`, or nothing.

        Values are as the database's driver takes them: times in SQLite are text.
        """
        compiled = _insert(self.writer.dialect, table, tuple(rows[0]), tuple(add))
        if self.path:
            values: Any = [tuple(row[name] for name in compiled.positiontup or ()) for row in rows]
        else:
            values = [{name: without_nul(value) for name, value in row.items()} for row in rows]
        connection.exec_driver_sql(compiled.string, values if len(values) > 1 else values[0])

    def short_write(self) -> AbstractContextManager[sa.Connection]:
        """Return a context with a connection for values beside the rows. It raises LedgerAway.

        In SQLite it holds a transaction; in PostgreSQL each statement is one of its own, so that none is left open.
        """
        return self._or_away(self.writer.begin if self.path else self._single.connect)

    def short_read(self) -> AbstractContextManager[sa.Connection]:
        return self._or_away(self.reader.connect if self.path else self._single.connect)

    @property
    def _single(self) -> sa.Engine:
        return self.reader.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def _or_away(self, connect: Callable[[], AbstractContextManager[sa.Connection]]) -> Iterator[sa.Connection]:
        try:
            with connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise unavailable(self.place, "takes no value", error, LedgerAway) from None

    def hold_order(self, connection: sa.Connection) -> None:
        """Let no other process number audits or change keys until the transaction ends: the order is one."""
        if self.path is None:  # SQLite has one writer at a time
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK + 1)))

    def close(self) -> None:
        """Close all connections. Safe to call twice."""
        self.writer.dispose()
        self.reader.dispose()


@cache
def _insert(dialect: sa.Dialect, table: sa.Table, names: tuple[str, ...], add: tuple[str, ...]) -> SQLCompiler:
    """Return a statement compiled once: to build and to look it up takes longer than to run it."""
    insert = sqlite.insert(table) if dialect.name == "sqlite" else postgresql.insert(table)
    if table.name not in KINDS:
        keys, new = [key.name for key in table.primary_key], insert.excluded
        more = {name: table.c[name] + new[name] for name in add}
        insert = (
            insert.on_conflict_do_update(index_elements=keys, set_=more) if add else insert.on_conflict_do_nothing()
        )
    return insert.compile(dialect=dialect, column_keys=names)


def open_database(place: Path | str) -> Database:
    """Open the ledger at a path or URL; make it where there is none. Raise ConfigError."""
    database = _in_postgresql(place) if isinstance(place, str) and "://" in place else _in_file(Path(place))
    try:
        with database.writer.begin() as connection:
            if database.path is None:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            if (found := _format(connection)) is None:
                METADATA.create_all(connection)
                for statement in _triggers(connection.dialect.name):
                    connection.exec_driver_sql(statement)
                connection.execute(ABOUT.insert().values(format=FORMAT))
            elif found == FORMAT:
                DRAWN.create(connection, checkfirst=True)  # one of 0.2.0 has none
    except (OSError, sqlite3.Error, SQLAlchemyError) as error:
        database.close()
        raise _unusable(database.place, reason(error)) from None
    if found not in (None, FORMAT):
        database.close()
        raise ConfigError(
            f"{database.place} is a ledger of another version of smallfirst (format {found}, this one reads {FORMAT})",
            hint="read it with the version that wrote it, and choose another path for a new one",
        )
    return database


def _in_file(path: Path) -> Database:
    """Open or create a SQLite file, readable by its owner only; what is deleted in it is overwritten with zeros."""

    def connect(*, read_only: bool = False) -> sqlite3.Connection:
        place = path.absolute().as_uri() + ("?mode=ro" if read_only else "")
        connection = sqlite3.connect(place, uri=True, check_same_thread=False, timeout=LOCK_TIMEOUT_S)
        connection.isolation_level = None
        for pragma in () if read_only else ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise _unusable(str(path), error) from None
    writer = sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.QueuePool, pool_size=1, max_overflow=0)
    sa.event.listen(writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    # Each read has a connection of its own, so a long report never blocks the writer.
    reader = sa.create_engine("sqlite://", creator=lambda: connect(read_only=True), poolclass=sa.pool.NullPool)
    return Database(str(path), path, writer, reader)


def _in_postgresql(place: str) -> Database:
    """Return the database of a URL, whose password may be in the environment (`?password_env=NAME`, PGPASSWORD)."""
    try:
        url = sa.make_url(place)
    except ArgumentError:
        raise _unusable("the ledger's URL", "it cannot be read") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise _unusable(url.render_as_string(), "a URL is one of PostgreSQL: postgresql://USER@HOST/DATABASE")
    name = url.query.get("password_env")
    if isinstance(name, str):
        if not os.environ.get(name):
            raise ConfigError(f"the ledger's password: the environment variable {name} is not set")
        url = url.difference_update_query(["password_env"]).set(password=os.environ[name])
    settings = {
        "connect_timeout": LOCK_TIMEOUT_S,
        "tcp_user_timeout": LOCK_TIMEOUT_S * 1000,
        "options": f"-c timezone=utc -c lock_timeout={LOCK_TIMEOUT_S}s"
        f" -c idle_in_transaction_session_timeout={_FROZEN_S}s",
    }
    engines = [
        sa.create_engine(
            url.set(drivername="postgresql+psycopg"), connect_args=settings, pool_pre_ping=True, pool_size=size
        )
        for size in (1, 4)
    ]
    return Database(url.set(drivername="postgresql").render_as_string(), None, *engines)


def without_nul(value: Any) -> Any:
    """Return a text without the character that PostgreSQL does not take; any other value as it is."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) and "\0" in value else value


def reason(error: Exception) -> str:
    """Return what the database said, in one line."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


def unavailable(
    place: Path | str, what: str, error: Exception, kind: type[LedgerUnavailable] = LedgerUnavailable
) -> LedgerUnavailable:
    """Return the error for a place that, for example, `takes no row`."""
    mend = "make room on its disk and see that it can be written to"
    if "://" in str(place):
        mend = "see that its server runs and can be reached"
    hint = f"{mend}; the next {what.rpartition(' ')[2]} is tried again"
    return kind(f"{place} {what}: {reason(error)}", hint=hint)


def _unusable(place: str, why: object) -> ConfigError:
    return ConfigError(f"{place} cannot be used as a ledger: {why}", hint="choose another path for the ledger")


def _format(connection: sa.Connection) -> int | None:
    """Return the format of the ledger that is there; None if there is none yet."""
    if sa.inspect(connection).has_table(ABOUT.name):
        return int(connection.execute(sa.select(ABOUT.c.format)).scalar_one())
    return None


_REFUSAL = "the ledger is append-only"
_MAY_GO = f"OLD.at < (SELECT rows_since FROM {ABOUT.name})"


def _triggers(dialect: str) -> Sequence[str]:
    """Return the statements that make every row of an entry stay as it is, until it may expire."""
    names = {name: kind in EXPIRING for name, kind in KINDS.items()}
    if dialect == "sqlite":
        refuse = f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        unless = {name: f"WHEN coalesce(NOT {_MAY_GO}, 1)" if expires else "" for name, expires in names.items()}
        return [
            *(f"CREATE TRIGGER {name}_stay BEFORE UPDATE ON {name} {refuse}" for name in names),
            *(f"CREATE TRIGGER {name}_last BEFORE DELETE ON {name} {unless[name]} {refuse}" for name in names),
        ]
    body = (
        f"BEGIN IF TG_OP = 'DELETE' AND TG_NARGS = 1 THEN IF {_MAY_GO} THEN RETURN OLD; END IF; END IF;"
        f" RAISE EXCEPTION '{_REFUSAL}'; END"
    )
    make = "CREATE TRIGGER {0}_{1} BEFORE {2} ON {0} FOR EACH {3} EXECUTE FUNCTION ledger_refuses({4})"
    return [
        f"CREATE FUNCTION ledger_refuses() RETURNS trigger LANGUAGE plpgsql AS $${body}$$",
        *(make.format(name, "stay", "UPDATE", "ROW", "") for name in names),
        *(make.format(name, "last", "DELETE", "ROW", "'expires'" if names[name] else "") for name in names),
        *(make.format(name, "whole", "TRUNCATE", "STATEMENT", "") for name in names),
    ]
