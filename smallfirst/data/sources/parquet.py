"""Rows from Parquet: columns become the same values that JSON lines would have given, or a rule with its row number.

What is asked must be text; answers may be numbers too, but not 32-bit floats, which would read 0.1 as 0.10000000149.
One text repeated ten million times packs into a kilobyte, so texts stay packed (as dictionaries) until their size is
known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallfirst.data.row_formats import FIELD, Columns, detect_layout
from smallfirst.data.sources.folders import FoundFile, display_path, list_files
from smallfirst.data.sources.reader import MAX_ROW_BYTES, NumberedRow, RawRow, ReadBudget, first_line, row_size_rule
from smallfirst.errors import DataError, MissingExtra

PARQUET = ".parquet"
_BATCH_ROWS = 1024
_TEXT = {"text", "null"}
_TEXTS = {"list of text", "list of null", "null"}
_SCALARS = {"scalar", "list of scalar"}
_TYPES: dict[str, tuple[str, set[str]]] = {
    "label": ("text or whole numbers", _TEXT | {"scalar"}),
    "labels": ("a list of texts", _TEXTS | {"list of scalar"}),
    "answer": ("text, or a list of texts", _TEXT | _TEXTS | _SCALARS),
    "context": ("text, or a list of texts", _TEXT | _TEXTS),
    "target": (
        "a struct of text, integers, doubles, booleans, lists and structs, or JSON as text",
        _TEXT | {"object", "message"},
    ),
    "messages": ("a list of structs of role and content, both text", {"list of message", "null"}),
}
"""By field of Columns: what its column must be, in words and as `_json_type` says it. Any other field is text."""
_FIELD_TYPES = ("text, whole numbers, doubles, booleans, lists or structs", _TEXT | _TEXTS | _SCALARS | {"object"})


def parquet_files(folder: Path) -> list[FoundFile]:
    """Return the files of a folder of Parquet in order, each with the rule that it breaks, if any."""
    return [one._replace(rule=one.rule or _stray_rule(one.path.relative_to(folder))) for one in list_files(folder)]


def read_parquet(
    files: Iterable[FoundFile], columns: Columns | None, budget: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """Yield the rows of all the files, numbered in each from 1. Raise DataError if one cannot be read, MissingExtra."""
    for path, rule in files:
        rules, wanted = ([rule], set[str]()) if rule else _check_file(path, columns, answered=answered)
        yield from (RawRow(display_path(path), 1, rule) for rule in rules)
        if not rules:
            yield from (RawRow(display_path(path), n, values) for n, values in numbered_rows(path, wanted, budget))


def select_columns(schema: Any, columns: Columns | None, *, answered: bool) -> tuple[list[str], set[str]]:
    """Return the rules that the columns of a table break, and the columns that make its rows; all without `columns`."""
    names: list[str] = schema.names
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        return [f'column "{twice[0]}" twice'], set()
    if columns is None:
        return [], set(names)
    found = detect_layout(names, columns, answered=answered)
    if isinstance(found, str):
        return [found], set()
    rules = [column_type_problem(field, schema.field(key).type, key) for field, key in found.keys.items()]
    return [rule for rule in rules if rule], set(found.keys.values())


def numbered_rows(path: Path, wanted: Collection[str], budget: ReadBudget) -> Iterator[NumberedRow]:
    """Yield these columns of each row of a Parquet file. Raise DataError if it is broken, or exceeds the budget."""
    with open_parquet(path, wanted) as file, parquet_errors(path):
        about = file.metadata
        leaves = [i for i, leaf in enumerate(_leaves(file)) if _is_part(leaf.path, wanted)]
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        claimed = sum(group.column(i).total_uncompressed_size for group in groups for i in leaves)
        budget.claim(claimed, about.num_rows)
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=sorted(wanted), use_threads=False)
        yield from batch_rows(batches, wanted, budget)


def batch_rows(batches: Iterable[Any], wanted: Collection[str], budget: ReadBudget) -> Iterator[NumberedRow]:
    """Yield these columns of each row of Arrow record batches, numbered from 1."""
    line = 0
    for batch in batches:
        for piece, n_bytes in _pieces(batch.select(sorted(wanted))):
            budget.take(0 if n_bytes > MAX_ROW_BYTES else n_bytes, len(piece))
            rows = [rule] if (rule := row_size_rule(n_bytes)) else _values(piece)
            yield from enumerate(rows, start=line + 1)
            line += len(piece)


def open_parquet(path: Path, wanted: Collection[str] = ()) -> Any:
    """Open a Parquet file so that texts of the wanted columns are read packed. Raise DataError, MissingExtra."""
    parquet = import_pyarrow("reading Parquet").parquet
    with parquet_errors(path):
        file = parquet.ParquetFile(path)
        leaves = [leaf for leaf in _leaves(file) if _is_part(leaf.path, wanted)]
        packed = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]
        if not packed:
            return file
        with file:
            return parquet.ParquetFile(path, metadata=file.metadata, read_dictionary=packed)


def import_pyarrow(step: str) -> Any:
    """Return the pyarrow module. Raise MissingExtra naming `step`."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(step, "tables") from None
    return pyarrow


def column_type_problem(field: str, kind: Any, key: str) -> str | None:
    """Return why a column of this Arrow type cannot hold that field of Columns; None if it can."""
    words, allowed = _FIELD_TYPES if field.startswith(FIELD) else _TYPES.get(field, ("text", _TEXT))
    if _json_type(kind) in allowed:
        return None
    name = str(kind)
    return f'column "{key}" is {name[:80]}{"…" if len(name) > 80 else ""}: write it as {words}'


def _json_type(kind: Any) -> str:
    """Return what an Arrow type is in JSON: text, null, scalar, object, message or a list of one; empty if nothing."""
    types = import_pyarrow("reading a table").types
    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(value) or types.is_large_string(value) or types.is_string_view(value):
        return "text"
    if types.is_null(kind):
        return "null"
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_float64(kind):
        return "scalar"
    if _is_list(kind):
        items = _json_type(kind.value_type)
        return items and f"list of {items}"
    if not types.is_struct(kind):
        return ""
    fields = {field.name: _json_type(field.type) for field in kind}
    if len(fields) < kind.num_fields or not all(fields.values()):
        return ""
    return "message" if fields.keys() == {"role", "content"} and set(fields.values()) <= _TEXT else "object"


def _is_list(kind: Any) -> bool:
    types = import_pyarrow("reading a table").types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _check_file(path: Path, columns: Columns | None, *, answered: bool) -> tuple[list[str], set[str]]:
    with open_parquet(path) as file:
        return select_columns(file.schema_arrow, columns, answered=answered)


def _pieces(batch: Any) -> Iterator[tuple[Any, int]]:
    """Yield pieces of the batch, of MAX_ROW_BYTES unpacked at most or a single row, each with its size in bytes."""
    n_bytes = sum(_unpacked_bytes(column) for column in batch.columns)
    half = len(batch) // 2
    if n_bytes <= MAX_ROW_BYTES or not half:
        yield batch, n_bytes
    else:
        yield from _pieces(batch.slice(0, half))
        yield from _pieces(batch.slice(half))


def _unpacked_bytes(array: Any) -> int:
    """Return how many bytes the array takes with each text written out."""
    pa = import_pyarrow("reading a table")
    types = pa.types
    if types.is_dictionary(array.type):
        lengths = pa.compute.binary_length(array.dictionary).cast(pa.int64())
        return int(pa.compute.sum(lengths.take(array.indices)).as_py() or 0)
    if types.is_struct(array.type):
        return sum(_unpacked_bytes(child) for child in array.flatten())
    if _is_list(array.type):
        return _unpacked_bytes(array.flatten())
    return int(array.nbytes)


def _values(piece: Any) -> list[dict[str, Any] | str]:
    """Return each row as values by column, or as the rule that it breaks: text in Arrow may be any bytes."""
    if not piece.num_columns:
        return [{} for _ in range(len(piece))]
    is_dictionary = import_pyarrow("reading a table").types.is_dictionary
    try:
        columns = [
            (column.dictionary_decode() if is_dictionary(column.type) else column).to_pylist()
            for column in piece.columns
        ]  # writing the texts out first reads them four times as fast
    except UnicodeDecodeError as error:
        if len(piece) > 1:
            return [row for i in range(len(piece)) for row in _values(piece.slice(i, 1))]
        return [f"text that is not UTF-8: byte 0x{error.object[error.start]:02x} at its offset {error.start:,}"]
    return [dict(zip(piece.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _leaves(file: Any) -> list[Any]:
    return [file.schema.column(i) for i in range(len(file.schema))]


def _is_part(path: str, wanted: Collection[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in wanted)


def _stray_rule(path: Path) -> str | None:
    """Return why a file at this path of a folder of Parquet may not be read; None if it may."""
    if path.suffix.lower() != PARQUET:
        return f"not a {PARQUET} file: a folder of Parquet holds nothing else; move it out"
    if partition := next((name for name in path.parts[:-1] if "=" in name), None):
        return f'the value of "{partition}" is not in the file: write the rows without partitions, or as Delta'
    return None


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Raise what the library raises about the file as DataError."""
    pa = import_pyarrow("reading Parquet")
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{display_path(path)}: not readable as Parquet: {first_line(error)}") from None
