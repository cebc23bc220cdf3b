"""Take rows out of the ledger: into a CSV or Parquet file, or everything into another ledger."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, Double, Text, select

from smallfirst.errors import ConfigError
from smallfirst.serving.ledger.database import Database
from smallfirst.serving.ledger.rows import Entry
from smallfirst.serving.ledger.tables import LEDGER, TABLES, Moment

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


def copy(source: Database, target: Database) -> dict[str, int]:
    """Copy rows, sums and texts into an empty ledger; return the number of rows by table. Raise ConfigError.

    All or nothing: what is interrupted leaves nothing behind. Nobody should write to the source meanwhile.
    """
    with target.writer.begin() as into, source.reader.connect() as from_:
        if any(into.execute(select(table).limit(1)).first() for table in TABLES.values()):
            raise ConfigError(f"{target.place} has rows already", hint="copy into a new database")
        found = {}
        for table in LEDGER.sorted_tables:
            into.execute(table.delete()) if table not in TABLES.values() else None
            found[table.name] = 0
            columns = [column for column in table.columns if column.name != "seq"]
            wanted = select(*columns).order_by(*table.primary_key.columns)
            for rows in from_.execution_options(yield_per=_CHUNK).execute(wanted).mappings().partitions():
                into.execute(table.insert(), [dict(row) for row in rows])
                found[table.name] += len(rows)
    return found
