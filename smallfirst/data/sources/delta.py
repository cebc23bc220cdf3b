"""Rows of a Delta table at one version, by file and row number there, without those that its log deletes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.folders import display_path, safe_join
from smallfirst.data.sources.parquet import import_pyarrow, numbered_rows, open_parquet, select_columns
from smallfirst.data.sources.reader import RawRow, ReadBudget, first_line
from smallfirst.errors import DataError, MissingExtra

DELTA_LOG = "_delta_log"
"""The folder that makes a folder a Delta table."""
_MAPPING = "delta.columnMapping.mode"
_PHYSICAL = "delta.columnMapping.physicalName"


class _Part(NamedTuple):
    path: Path
    fixed: dict[str, Any]
    """Values of its rows that stand in the log only."""
    stands: Sequence[bool]
    """By row: False if it is deleted. Rows after the last all stand."""


def open_delta(folder: Path, version: int | None = None) -> Any:
    """Return the table as it was at that version, or is now. Raise DataError naming what is wrong, MissingExtra."""
    if not (folder / DELTA_LOG).is_dir():
        raise DataError(f"{display_path(folder)}: no Delta table: it has no folder {DELTA_LOG}")
    try:
        import deltalake
    except ImportError:
        raise MissingExtra("reading a Delta table", "tables") from None
    with _telling(folder, version):
        table = deltalake.DeltaTable(folder.resolve(), version=version)
    if (mode := _mapping(table)) not in ("none", "name"):
        raise DataError(f"{display_path(folder)}: its columns are mapped by {mode}; only mapping by name is read")
    return table


def read_delta(
    table: Any, folder: Path, columns: Columns | None, budget: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """Yield the rows of an open table; columns that do not fit are one bad row. Raise DataError if it is broken."""
    schema = import_pyarrow("reading a Delta table").schema(table.schema().to_arrow())
    rules, wanted = select_columns(schema, columns, answered=answered)
    yield from (RawRow(display_path(folder), 1, rule) for rule in rules)
    if rules:
        return
    fields = {field.name: field for field in table.schema().fields if field.name in wanted}
    for part in _parts(table, folder.resolve()):
        for n, values in _part_rows(part, fields, budget, mapped=_mapping(table) == "name"):
            yield RawRow(display_path(part.path), n, values)


def _part_rows(
    part: _Part, fields: dict[str, Any], budget: ReadBudget, *, mapped: bool
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the rows of a file that are not deleted, by the column names of the table; a missing column is null."""
    names = {name: _physical(field) if mapped else name for name, field in fields.items() if name not in part.fixed}
    with open_parquet(part.path) as file:
        there = set(names.values()) & set(file.schema_arrow.names)
    absent = dict.fromkeys(fields) | {name: value for name, value in part.fixed.items() if name in fields}
    for n, values in numbered_rows(part.path, there, budget):
        if n <= len(part.stands) and not part.stands[n - 1]:
            continue
        if isinstance(values, str):
            yield n, values
            continue
        found = {name: values[held] for name, held in names.items() if held in there}
        yield n, absent | ({k: _renamed(v, fields[k].type) for k, v in found.items()} if mapped else found)


def _parts(table: Any, folder: Path) -> list[_Part]:
    """Return the data files of the version, oldest first. Raise DataError if one is missing, changed or elsewhere."""
    pa = import_pyarrow("reading a Delta table")
    with _telling(folder, table.version()):
        actions = pa.table(table.get_add_actions()).to_pylist()
        vectors = pa.table(table.deletion_vectors().read_all())
    stands = [vector.values.to_numpy(zero_copy_only=False) for vector in vectors["selection_vector"]]
    paths = (Path(unquote(urlsplit(uri).path)) for uri in vectors["filepath"].to_pylist())
    deleted = dict(zip(paths, stands, strict=True))
    parts = []
    for action in sorted(actions, key=lambda action: (action["modification_time"], action["path"])):
        path = safe_join(folder, unquote(action["path"]).split("/"))
        n_bytes = path.stat().st_size if path.is_file() else -1
        if n_bytes != action["size_bytes"]:
            rule = "is missing" if n_bytes < 0 else f"has {n_bytes:,} bytes, not {action['size_bytes']:,}"
            raise DataError(
                f"{display_path(path)}: {rule}, against the log of the table",
                hint=f"read the newest version of {folder.name}, or copy the table anew",
            )
        parts.append(_Part(path, action.get("partition") or {}, deleted.pop(path, ())))
    if deleted:  # never read on: rows that should be gone would come back
        raise DataError(f"{display_path(folder)}: rows are deleted from files that are not the table's: {min(deleted)}")
    return parts


def _mapping(table: Any) -> str:
    return str(table.metadata().configuration.get(_MAPPING, "none"))


def _physical(field: Any) -> str:
    return str(field.metadata.get(_PHYSICAL, field.name))


def _renamed(value: Any, kind: Any) -> Any:
    """Return the value with the fields of its structs by the names of the table, not those of the files."""
    if isinstance(value, dict) and hasattr(kind, "fields"):
        return {field.name: _renamed(value.get(_physical(field)), field.type) for field in kind.fields}
    if isinstance(value, list) and hasattr(kind, "element_type"):
        return [_renamed(item, kind.element_type) for item in value]
    return value


@contextmanager
def _telling(folder: Path, version: int | None) -> Iterator[None]:
    import deltalake

    try:
        yield
    except (deltalake.exceptions.DeltaError, OSError) as error:
        asked = "" if version is None else f" at version {version}"
        raise DataError(f"{display_path(folder)}: not readable as a Delta table{asked}: {first_line(error)}") from None
