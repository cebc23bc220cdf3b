"""Rows from Parquet: columns become the same values that JSON lines would have given, or a rule with its row number.

Nothing is converted by guess. A column that must be text is text: numbers and booleans are refused, since 3 may be
written "3" or "03", or be the code of a name kept elsewhere. Lists of text, structs of role and content, and structs of
what JSON knows are read as they are. The prices: a struct has every field in every row, so a missing field is null; and
floats of 32 bits are refused, since 0.1 would be read as 0.10000000149.

A table claims its size before it is read, and one text repeated ten million times packs into a kilobyte. So texts stay
packed (as dictionaries) until their size is known, and a row or source that is too large is never unpacked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallfirst.data.row_formats import Columns, detect_layout
from smallfirst.data.sources.folders import FoundFile, display_path, list_files
from smallfirst.data.sources.reader import MAX_ROW_BYTES, RawRow, ReadBudget
from smallfirst.errors import DataError, MissingExtra

PARQUET = ".parquet"
_BATCH_ROWS = 1024

NumberedRow = tuple[int, dict[str, Any] | str]
"""Row number from 1, and the values by column or the rule that the row breaks."""


def parquet_files(folder: Path) -> list[FoundFile]:
    """The files of a folder of Parquet, in order, each with the rule that it breaks, if any."""
    return [one._replace(rule=one.rule or _stray_rule(one.path.relative_to(folder))) for one in list_files(folder)]


def read_parquet(
    files: Iterable[FoundFile], columns: Columns, allowance: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """The rows of all the files, numbered in each from 1. A file whose columns make no shape is one bad row.

    Raises DataError if a file is not readable as Parquet, or all are too large; MissingExtra.
    """
    for path, rule in files:
        rules, wanted = ([rule], set[str]()) if rule else _looked_into(path, columns, answered=answered)
        yield from (RawRow(display_path(path), 1, rule) for rule in rules)
        if not rules:
            yield from (RawRow(display_path(path), n, values) for n, values in numbered_rows(path, wanted, allowance))


def _looked_into(path: Path, columns: Columns, *, answered: bool) -> tuple[list[str], set[str]]:
    with open_parquet(path) as file:
        return select_columns(file.schema_arrow, columns, answered=answered)


def select_columns(schema: Any, columns: Columns, *, answered: bool) -> tuple[list[str], set[str]]:
    """The rules that the columns of a table break, and those of them that make its rows."""
    names: list[str] = schema.names
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        return [f'column "{twice[0]}" twice'], set()
    found = detect_layout(names, columns, answered=answered)
    if isinstance(found, str):
        return [found], set()
    rules = [column_type_problem(field, schema.field(key).type, key) for field, key in found.keys.items()]
    return [rule for rule in rules if rule], set(found.keys.values())


def numbered_rows(path: Path, wanted: Collection[str], allowance: ReadBudget) -> Iterator[NumberedRow]:
    """These columns of each row of a Parquet file. Raises DataError if it is broken, or too large for the allowance."""
    with open_parquet(path, wanted) as file, parquet_errors(path):
        about = file.metadata
        leaves = [i for i, leaf in enumerate(_leaves(file)) if _is_part(leaf.path, wanted)]
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        claimed = sum(group.column(i).total_uncompressed_size for group in groups for i in leaves)
        allowance.claim(claimed, about.num_rows)
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=sorted(wanted), use_threads=False)
        yield from batch_rows(batches, wanted, allowance)


def batch_rows(batches: Iterable[Any], wanted: Collection[str], allowance: ReadBudget) -> Iterator[NumberedRow]:
    """These columns of each row of Arrow record batches, numbered on from 1."""
    line = 0
    for batch in batches:
        for piece, n_bytes in _pieces(batch.select(sorted(wanted))):
            too_large = n_bytes > MAX_ROW_BYTES
            allowance.take(0 if too_large else n_bytes, len(piece))
            rows = [f"row of {n_bytes:,} bytes; at most {MAX_ROW_BYTES:,} are read"] if too_large else _values(piece)
            yield from enumerate(rows, start=line + 1)
            line += len(piece)


def open_parquet(path: Path, wanted: Collection[str] = ()) -> Any:
    """The Parquet file, the texts of the wanted columns to be read packed. Raises DataError, MissingExtra."""
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
    """The pyarrow module. Raises MissingExtra naming `step`."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(step, "tables") from None
    return pyarrow


def column_type_problem(field: str, kind: Any, key: str) -> str | None:
    """Why a column of this Arrow type cannot hold that field of Columns; None if it can."""
    what, fits = _TYPES.get(field, ("text", _is_text))
    if fits(kind):
        return None
    told = str(kind)
    return f'column "{key}" is {told[:80]}{"…" if len(told) > 80 else ""}: write it as {what}'


def _is_text(kind: Any) -> bool:
    types = import_pyarrow("reading a table").types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)) or _is_null(kind)


def _is_null(kind: Any) -> bool:
    return bool(import_pyarrow("reading a table").types.is_null(kind))


def _is_list(kind: Any, item: Callable[[Any], bool]) -> bool:
    types = import_pyarrow("reading a table").types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(lists) and item(kind.value_type)


def _is_texts(kind: Any) -> bool:
    return _is_list(kind, _is_text) or _is_null(kind)


def _is_text_or_texts(kind: Any) -> bool:
    return _is_text(kind) or _is_texts(kind)


def _is_message(kind: Any) -> bool:
    if not import_pyarrow("reading a table").types.is_struct(kind):
        return False
    return sorted(field.name for field in kind) == ["content", "role"] and all(_is_text(field.type) for field in kind)


def _is_messages(kind: Any) -> bool:
    return _is_list(kind, _is_message) or _is_null(kind)


def _is_target(kind: Any) -> bool:
    return _is_text(kind) or (import_pyarrow("reading a table").types.is_struct(kind) and _is_json(kind))


def _is_json(kind: Any) -> bool:
    types = import_pyarrow("reading a table").types
    if types.is_struct(kind):
        names = [field.name for field in kind]
        return len(names) == len(set(names)) and all(_is_json(field.type) for field in kind)
    plain = types.is_boolean(kind) or types.is_integer(kind) or types.is_float64(kind)
    return bool(plain) or _is_text(kind) or _is_list(kind, _is_json)


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "labels": ("a list of texts", _is_texts),
    "answer": ("text, or a list of texts", _is_text_or_texts),
    "context": ("text, or a list of texts", _is_text_or_texts),
    "target": ("a struct of text, integers, doubles, booleans, lists and structs, or JSON as text", _is_target),
    "messages": ("a list of structs of role and content, both text", _is_messages),
}
"""By field of Columns: what its column must be, told and tested. Any other field is text."""


def _pieces(batch: Any) -> Iterator[tuple[Any, int]]:
    """The batch in pieces that unpack to MAX_ROW_BYTES at most, or are a single row; and their size."""
    n_bytes = sum(_unpacked_bytes(column) for column in batch.columns)
    half = len(batch) // 2
    if n_bytes <= MAX_ROW_BYTES or not half:
        yield batch, n_bytes
    else:
        yield from _pieces(batch.slice(0, half))
        yield from _pieces(batch.slice(half))


def _unpacked_bytes(array: Any) -> int:
    """How many bytes the array takes with each text written out."""
    pa = import_pyarrow("reading a table")
    types = pa.types
    if types.is_dictionary(array.type):
        lengths = pa.compute.binary_length(array.dictionary).cast(pa.int64())
        return int(pa.compute.sum(lengths.take(array.indices)).as_py() or 0)
    if types.is_struct(array.type):
        return sum(_unpacked_bytes(child) for child in array.flatten())
    if types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        return _unpacked_bytes(array.flatten())
    return int(array.nbytes)


def _values(piece: Any) -> list[dict[str, Any] | str]:
    """Each row as values by column, or as the rule that it breaks: text in Arrow may be any bytes."""
    if not piece.num_columns:
        return [{} for _ in range(len(piece))]
    try:
        columns = [_plain(column).to_pylist() for column in piece.columns]
    except UnicodeDecodeError as error:
        if len(piece) > 1:
            return [row for i in range(len(piece)) for row in _values(piece.slice(i, 1))]
        return [f"text that is not UTF-8: byte 0x{error.object[error.start]:02x} at its offset {error.start:,}"]
    return [dict(zip(piece.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(column: Any) -> Any:
    """The column with its texts written out, which reads them four times as fast."""
    return column.dictionary_decode() if import_pyarrow("reading a table").types.is_dictionary(column.type) else column


def _leaves(file: Any) -> list[Any]:
    return [file.schema.column(i) for i in range(len(file.schema))]


def _is_part(path: str, wanted: Collection[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in wanted)


def _stray_rule(path: Path) -> str | None:
    """Why a file at this path of a folder of Parquet may not be read, if it may not."""
    if path.suffix.lower() != PARQUET:
        return f"no {PARQUET} file: a folder of Parquet holds nothing else; move it out"
    if partition := next((name for name in path.parts[:-1] if "=" in name), None):
        return f'the value of "{partition}" is not in the file: write the rows without partitions, or as Delta'
    return None


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """What the library raises about the file is raised as DataError."""
    pa = import_pyarrow("reading Parquet")
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{display_path(path)}: not readable as Parquet: {first[:300]}") from None
