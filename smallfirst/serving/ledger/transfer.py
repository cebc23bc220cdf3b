"""Take rows out of the ledger: into a CSV or Parquet file, or everything into another ledger."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, Connection, Double, Table, Text, select

from smallfirst.errors import ConfigError
from smallfirst.serving.ledger.rows import Entry
from smallfirst.serving.ledger.tables import ABOUT, LEDGER, TABLES, TEXTS, Moment

if TYPE_CHECKING:
    from smallfirst.serving.ledger.ledger import Ledger

KINDS = {table.name: kind for kind, table in TABLES.items()}
"""Kinds of entries by the names of their tables."""
_CHUNK = 5_000


def export(
    ledger: Ledger, kind: type[Entry], out: Path, *, since: datetime | None = None, until: datetime | None = None
) -> int:
    """Write the rows of a kind in [since, until), without texts, to a .csv or .parquet file; return their number.

    The file appears when it is complete. Raise ConfigError for another ending, ModuleNotFoundError without PyArrow.
    """
    rows = (row.model_dump() for row in ledger.scan(kind, since, until))  # type: ignore[type-var]
    writers = {".csv": _to_csv, ".parquet": _to_parquet}
    if out.suffix not in writers:
        raise ConfigError(f"{out}: rows are exported to .csv or .parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        count = writers[out.suffix](kind, rows, part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return count


def _to_csv(kind: type[Entry], rows: Iterator[dict[str, Any]], out: Path) -> int:
    written = 0
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(kind.model_fields))
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"at": row["at"].isoformat()})
            written += 1
    return written


def _to_parquet(kind: type[Entry], rows: Iterator[dict[str, Any]], out: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    types = {Moment: pyarrow.timestamp("us", tz="UTC"), Text: pyarrow.string(), Boolean: pyarrow.bool_()}
    types[Double] = pyarrow.float64()
    columns = [(name, types.get(type(TABLES[kind].c[name].type), pyarrow.int64())) for name in kind.model_fields]
    schema, count = pyarrow.schema(columns), 0
    with pyarrow.parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        while some := list(islice(rows, _CHUNK)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))
            count += len(some)
    return count


def copy(old: Ledger, new: Ledger) -> dict[str, int]:
    """Copy rows, sums and texts into an empty ledger; return the number of rows by table. Raise ConfigError.

    All or nothing of the rows; nobody should write to the old ledger meanwhile.
    """
    with new.database.writer.begin() as into, old.database.reader.connect() as from_:
        if any(into.execute(select(table).limit(1)).first() for table in TABLES.values()):
            raise ConfigError(f"{new.place} has rows already", hint="copy into a new database")
        into.execute(ABOUT.delete())
        found = {table.name: _copy_table(from_, into, table) for table in LEDGER.sorted_tables}
    if (texts := old.bodies()) and (target := new.bodies(create=True)):
        with texts.database.reader.connect() as from_, target.database.writer.begin() as into:
            found[TEXTS.name] = _copy_table(from_, into, TEXTS)
    return found


def _copy_table(from_: Connection, into: Connection, table: Table) -> int:
    wanted = select(*(column for column in table.columns if column.name != "seq")).order_by(*table.primary_key.columns)
    count = 0
    for rows in from_.execution_options(yield_per=_CHUNK).execute(wanted).mappings().partitions():
        into.execute(table.insert(), [dict(row) for row in rows])
        count += len(rows)
    return count
