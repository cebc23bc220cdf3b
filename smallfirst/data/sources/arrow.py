"""Rows from Parquet and Delta tables, read as Arrow; a bad row is named by file and number.

Columns become the same values that JSON lines would have given. Types that JSON lacks are refused, and 32-bit floats,
which would read 0.1 as 0.10000000149.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from smallfirst.base.errors import DataError
from smallfirst.data.row_formats import Columns, detect_layout
from smallfirst.data.sources.folders import FoundFile, display_path, list_files, safe_join
from smallfirst.data.sources.text_files import MAX_ROW_BYTES, NumberedRow, RawRow, ReadBudget, first_line, row_size_rule

PARQUET = ".parquet"
DELTA_LOG = "_delta_log"
"""The folder that makes a folder a Delta table."""
BATCH_ROWS = 128
"""So few, since one text many times over packs into a small file."""
_LARGE_BATCH_BYTES = 4_000_000
"""Rows of a larger batch are looked at one by one before they become objects, of which each number takes 32 bytes."""


def _chosen_columns(schema: Any, columns: Columns | None, *, answered: bool) -> tuple[list[str], set[str]]:
    """Return the rules that the columns of a table break, and the columns that make its rows; all without `columns`."""
    names: list[str] = schema.names
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        return [f'column "{twice[0]}" twice'], set()
    if columns is None:
        return [], set(names)
    found = detect_layout(names, columns, answered=answered)
    if isinstance(found, str):
        return [found], set()
    rules = [
        f'column "{key}" is {str(schema.field(key).type)[:80]}: write it as text, whole numbers, doubles or booleans, '
        "or lists and structs of these"
        for key in found.keys.values()
        if not _is_json(schema.field(key).type)
    ]
    return rules, set(found.keys.values())


def _is_json(kind: Any) -> bool:
    """Return True for an Arrow type whose values JSON has."""
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    if types.is_struct(kind):
        return len({field.name for field in kind}) == kind.num_fields and all(_is_json(field.type) for field in kind)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_number = types.is_integer(kind) or types.is_float64(kind)
    return bool(is_text or is_number or types.is_boolean(kind) or types.is_null(kind))


def batch_rows(batches: Iterable[Any], wanted: Collection[str], budget: ReadBudget) -> Iterator[NumberedRow]:
    """Yield these columns of each row of Arrow record batches, numbered from 1."""
    line = 0
    for batch in batches:
        for values in _values(batch.select(sorted(wanted))) if wanted else [{}] * len(batch):
            line += 1
            n_bytes = 0 if isinstance(values, str) else _n_bytes(values)
            rule = row_size_rule(n_bytes)
            budget.take(0 if rule else n_bytes, 1)
            yield line, rule or values


def _values(batch: Any) -> list[dict[str, Any] | str]:
    """Return each row as values by column, or as the rule that it breaks: text in Arrow may be any bytes."""
    if len(batch) > 1 and batch.nbytes > _LARGE_BATCH_BYTES:
        return [row for i in range(len(batch)) for row in _values(_alone(batch, i))]
    if batch.nbytes > _LARGE_BATCH_BYTES:
        return [row_size_rule(batch.nbytes) or ""]
    try:
        rows: list[dict[str, Any] | str] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) > 1:
            return [row for i in range(len(batch)) for row in _values(_alone(batch, i))]
        return [f"text that is not UTF-8: byte 0x{error.object[error.start]:02x} at its offset {error.start:,}"]
    return rows


def _alone(batch: Any, row: int) -> Any:
    """Return one row as a batch that holds no values of others, as a dictionary does."""
    import pyarrow as pa

    taken = batch.slice(row, 1)
    plain = [one.dictionary_decode() if pa.types.is_dictionary(one.type) else one for one in taken.columns]
    return pa.RecordBatch.from_arrays(plain, names=taken.schema.names)


def _n_bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_n_bytes, value.values()))
    if isinstance(value, list):
        return sum(map(_n_bytes, value))
    return len(value.encode()) if isinstance(value, str) else 8


# Parquet


def read_parquet(
    files: Iterable[FoundFile], columns: Columns | None, budget: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """Yield the rows of all the files, numbered in each from 1. Raise DataError if one cannot be read."""
    for path, rule in files:
        rules, wanted = ([rule], set[str]()) if rule else _chosen_columns(_schema(path), columns, answered=answered)
        yield from (RawRow(display_path(path), 1, rule) for rule in rules)
        if not rules:
            yield from (RawRow(display_path(path), n, values) for n, values in _parquet_rows(path, wanted, budget))


def parquet_files(folder: Path) -> list[FoundFile]:
    """Return the files of a folder of Parquet in order, each with the rule that it breaks, if any."""

    def rule(path: Path) -> str | None:
        if path.suffix.lower() != PARQUET:
            return f"not a {PARQUET} file: a folder of Parquet holds nothing else; move it out"
        if partition := next((name for name in path.relative_to(folder).parts[:-1] if "=" in name), None):
            return f'the value of "{partition}" is not in the file: write the rows without partitions, or as Delta'
        return None

    return [one._replace(rule=one.rule or rule(one.path)) for one in list_files(folder)]


def _schema(path: Path) -> Any:
    with _parquet_errors(path) as parquet, parquet.ParquetFile(path) as file:
        return file.schema_arrow


def _parquet_rows(path: Path, wanted: Collection[str], budget: ReadBudget) -> Iterator[NumberedRow]:
    """Yield these columns of each row of a Parquet file. Raise DataError if it is broken, or exceeds the budget."""
    with _parquet_errors(path) as parquet, parquet.ParquetFile(path) as file:
        about = file.metadata
        paths, wanted = [file.schema.column(i).path for i in range(len(file.schema))], set(wanted)
        held = [i for i, at in enumerate(paths) if any(at[: dot.start()] in wanted for dot in re.finditer(r"\.|$", at))]
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        budget.claim(sum(group.column(i).total_uncompressed_size for group in groups for i in held), about.num_rows)
        for group in groups:
            mean = max((group.column(i).total_uncompressed_size for i in held), default=0) // max(1, group.num_rows)
            if mean > 2 * MAX_ROW_BYTES:  # a page of them alone takes several times as much memory
                what = f"{display_path(path)}: {row_size_rule(mean)}, and these are so large on average"
                raise DataError(what, hint="write texts of a narrow task, or split these")
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=sorted(wanted), use_threads=False)
        yield from batch_rows(batches, wanted, budget)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[Any]:
    """Yield pyarrow.parquet; raise what it raises about the file as DataError."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        yield parquet
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{display_path(path)}: not readable as Parquet: {first_line(error)}") from None


# Delta: the rows of one version, without those that its log deletes


class _DataFile(NamedTuple):
    path: Path
    fixed: dict[str, Any]
    """Values of its rows that stand in the log only."""
    stands: Sequence[bool]
    """By row: False if it is deleted. Rows after the last all stand."""


def open_delta(folder: Path, version: int | None = None) -> Any:
    """Return the table as it was at that version, or is now. Raise DataError naming what is wrong."""
    if not (folder / DELTA_LOG).is_dir():
        raise DataError(f"{display_path(folder)}: no Delta table: it has no folder {DELTA_LOG}")
    import deltalake

    with _delta_errors(folder, version):
        table = deltalake.DeltaTable(folder.resolve(), version=version)
    if (mode := table.metadata().configuration.get("delta.columnMapping.mode", "none")) != "none":
        raise DataError(
            f"{display_path(folder)}: its columns are mapped by {mode}, so its files have other names for them",
            hint="write the rows anew: CREATE TABLE … AS SELECT * FROM …, or export them as Parquet",
        )
    return table


def read_delta(
    table: Any, folder: Path, columns: Columns | None, budget: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """Yield the rows of an open table; columns that do not fit are one bad row. Raise DataError if it is broken."""
    import pyarrow as pa

    schema = pa.schema(table.schema().to_arrow())
    rules, wanted = _chosen_columns(schema, columns, answered=answered)
    yield from (RawRow(display_path(folder), 1, rule) for rule in rules)
    for file in [] if rules else _data_files(table, folder.resolve()):
        held = (wanted - file.fixed.keys()) & set(_schema(file.path).names)
        absent = dict.fromkeys(wanted) | {name: value for name, value in file.fixed.items() if name in wanted}
        for n, values in _parquet_rows(file.path, held, budget):
            if n > len(file.stands) or file.stands[n - 1]:
                yield RawRow(display_path(file.path), n, values if isinstance(values, str) else absent | values)


def _data_files(table: Any, folder: Path) -> list[_DataFile]:
    """Return the data files of the version, oldest first. Raise DataError if one is not below the table's folder."""
    import pyarrow as pa

    with _delta_errors(folder, table.version()):
        actions = pa.table(table.get_add_actions()).to_pylist()
        vectors = pa.table(table.deletion_vectors().read_all())
    stands = [vector.values.to_numpy(zero_copy_only=False) for vector in vectors["selection_vector"]]
    paths = (Path(unquote(urlsplit(uri).path)) for uri in vectors["filepath"].to_pylist())
    deleted = dict(zip(paths, stands, strict=True))
    files = []
    for action in sorted(actions, key=lambda action: (action["modification_time"], action["path"])):
        path = safe_join(folder, unquote(action["path"]).split("/"))
        files.append(_DataFile(path, action.get("partition") or {}, deleted.pop(path, ())))
    if deleted:  # never read on: rows that should be gone would come back
        raise DataError(f"{display_path(folder)}: rows are deleted from files that are not the table's: {min(deleted)}")
    return files


@contextmanager
def _delta_errors(folder: Path, version: int | None) -> Iterator[None]:
    import deltalake

    try:
        yield
    except (deltalake.exceptions.DeltaError, OSError) as error:
        asked = "" if version is None else f" at version {version}"
        raise DataError(f"{display_path(folder)}: not readable as a Delta table{asked}: {first_line(error)}") from None
