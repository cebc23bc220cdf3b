"""Tables of the ledger, in SQLite or PostgreSQL: one for each kind of entry, the sums over them, and the bodies."""

from __future__ import annotations

from datetime import UTC, datetime
from types import NoneType
from typing import Any, get_args

from pydantic import AwareDatetime
from pydantic.fields import FieldInfo
from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from smallfirst.serving.ledger.rows import (
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
from smallfirst.serving.ledger.sums import AMOUNTS, DIMENSIONS

LEDGER, BODIES = MetaData(), MetaData()
"""Tables of the ledger · of the texts, which have a file of their own in SQLite."""


class Moment(TypeDecorator[datetime]):
    """A time: `timestamptz` in PostgreSQL; in SQLite text of a fixed width in UTC, whose order is the order in time."""

    impl, cache_ok = Text, True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(TIMESTAMP(timezone=True) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Return the time as the database takes it."""
        return value if value is None or dialect.name == "postgresql" else utc_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return datetime.fromisoformat(value) if isinstance(value, str) else value and value.astimezone(UTC)


def utc_text(moment: datetime) -> str:
    """Format with a fixed width, so that order as text is order in time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


_TYPES: dict[Any, type[TypeEngine[Any]]] = {int: BigInteger, float: Double, bool: Boolean, AwareDatetime: Moment}


def _column(name: str, field: FieldInfo) -> Column[Any]:
    options = [*(get_args(field.annotation) or (field.annotation,))]
    return Column(name, _TYPES.get(options[0], Text)(), nullable=NoneType in options)


def _of(name: str, kind: type[Entry], *more: SchemaItem) -> Table:
    key: Column[int] = Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    columns = [_column(*field) for field in kind.model_fields.items()]
    return Table(name, LEDGER, key, *columns, *more, sqlite_autoincrement=True)


TABLES: dict[type[Entry], Table] = {
    LedgerRow: _of(
        "answers",
        LedgerRow,
        UniqueConstraint("id"),
        Index("answers_at", "at"),
        Index("answers_drawn", "task", sqlite_where=text("audited IS 1"), postgresql_where=text("audited IS true")),
    ),
    AttemptRow: _of("attempts", AttemptRow, Index("attempts_id", "id")),
    AuditRow: _of("audits", AuditRow, UniqueConstraint("id")),
    DraftRow: _of("drafts", DraftRow, UniqueConstraint("id")),
    ShadowRow: _of("shadows", ShadowRow, UniqueConstraint("task", "certificate", "text")),
    FeedbackRow: _of("feedback", FeedbackRow, Index("feedback_id", "id")),
    StateRow: _of("states", StateRow, Index("states_once", "task", "certificate", "after_audit", "cause", unique=True)),
    ExpenseRow: _of("expenses", ExpenseRow, UniqueConstraint("id")),
}
EXPIRING = (LedgerRow, AttemptRow, DraftRow, FeedbackRow)
"""Kinds whose old rows may go. Audits, shadows, states and expenses stay: promise and statement stand on them."""

ABOUT = Table("about", LEDGER, Column("format", Integer, nullable=False), Column("rows_since", Moment))
"""One row. Rows of EXPIRING before `rows_since` may be deleted; triggers refuse every other change."""


def _key(name: str, kind: type[TypeEngine[Any]] = BigInteger) -> Column[Any]:
    return Column(name, kind(), primary_key=True, autoincrement=False)


def _number(name: str, kind: type[TypeEngine[Any]]) -> Column[Any]:
    return Column(name, kind(), nullable=False, server_default=text("0"))


GROUPS = Table("sum_groups", LEDGER, _key("id"), *(Column(name, Text, nullable=False) for name in DIMENSIONS))
"""Each combination of the fields by which is summed; `id` is a hash of them."""
SUMS = Table(
    "sums",
    LEDGER,
    *map(_key, ("hour", "group_id")),
    *(_number(name, _TYPES[kind]) for name, kind in AMOUNTS.items()),
    sqlite_with_rowid=False,
)
"""Sums of an hour, which is counted from 1970 in UTC."""
LATENCIES = Table(
    "latencies",
    LEDGER,
    *map(_key, ("hour", "group_id", "bucket")),
    _number("n", BigInteger),
    sqlite_with_rowid=False,
)
"""Answers of an hour by latency, in buckets as in `Sums`."""
MACHINES = Table(
    "machine_hours",
    LEDGER,
    *(_key("hour"), _key("machine", Text), _key("host", Text)),
    *(_number(name, Double) for name in ("up_s", "busy_s", "noted_until")),
    sqlite_with_rowid=False,
)
"""Seconds of an hour for which a host was up, and, under the empty host, for which models worked."""

SHARED = Table(
    "shared", LEDGER, _key("name", Text), _number("version", BigInteger), Column("value", Text, nullable=False)
)
"""Values of `SharedState`."""

TEXTS = Table(
    "bodies",
    BODIES,
    *(
        _key("id", Text),
        Column("at", Moment, nullable=False),
        Column("request_text", Text),
        Column("answer_text", Text),
    ),
    Index("bodies_at", "at"),
    sqlite_with_rowid=False,
)
CHECKED = Table("checked", BODIES, Column("at", Moment, nullable=False))
"""One row: the time of the last deletion, by a clock that was trusted."""
