"""Load rows from wherever they are, all under the same rules. What exists under a path hides what has that name.

rows.jsonl · rows.csv.gz                JSON Lines, JSON lists and CSV, also gzipped
rows.xlsx                               a workbook: the first sheet with rows
rows.parquet · folder of these          Parquet
folder with _delta_log · …@v7           a Delta table, newest or at version 7
catalog.schema.table · …@v7             the same below SMALLFIRST_TABLES
folder of texts and documents           text to continue, a row a file; in sub-folders their names are labels
[dbfs:]/Volumes/catalog/schema/vol/…    any of these in a volume
"""

from __future__ import annotations

import gc
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.base.errors import DataError, Problem, did_you_mean
from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.data.check import Finding, make_finding
from smallfirst.data.dataset import Dataset, Example, RowFormat
from smallfirst.data.row_formats import (
    ROW_FORMATS,
    Columns,
    Folding,
    RowLayout,
    detect_layout,
    is_empty_row,
    parse_plain_row,
    parse_row,
)
from smallfirst.data.sources import folders
from smallfirst.data.sources.arrow import DELTA_LOG, PARQUET, open_delta, parquet_files, read_delta, read_parquet
from smallfirst.data.sources.documents import with_documents
from smallfirst.data.sources.text_files import FORMATS, RawRow, ReadBudget, file_format, read_text_file, suggest_files
from smallfirst.data.sources.workbooks import WORKBOOKS, read_workbook

MAX_PROBLEMS = 10_000
"""Problems of one source that are kept; all bad rows are counted."""
DEFAULT_COLUMNS = Columns()
TABLES_VARIABLE = "SMALLFIRST_TABLES"
"""Environment variable: the folder in which tables stand as catalog/schema/table."""
MOST_SKIPPED = 0.1
"""With more bad rows it is the columns that are wrong rather than the rows."""
_TABLE = re.compile(r"[^./\\@]+(?:\.[^./\\@]+){2}")
_PINNED = re.compile(r"(?P<address>.+)@v(?P<version>\d{1,18})", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class LoadedRows(NamedTuple):
    """The good rows of a source, and everything that was found about the others and the source itself."""

    data: Dataset
    problems: tuple[Problem, ...]
    """The first MAX_PROBLEMS rules that bad rows break."""
    n_bad: int
    notes: tuple[Finding, ...]
    """What was read otherwise than it stands."""
    skipped: Finding | None = None
    """The bad rows, where they were left out."""


def note_skipped(problems: Sequence[Problem], n_bad: int, n_good: int, up_to: float, where: str) -> Finding | None:
    """Return a note on bad rows that are left out. Raise DataError with the problems if they are a larger share."""
    if not n_bad:
        return None
    share = n_bad / (n_bad + n_good)
    if share > up_to or not n_good:
        hint = "fix these lines; map columns of other names by columns: {text: …, label: …}"
        if share <= MOST_SKIPPED:
            leave_out = math.ceil(share * 100) / 100
            hint = f"fix these lines, or leave them out by data.skip_bad_rows_up_to: {leave_out:g}"
        raise DataError(f"{where}: {n_bad:,} bad and {n_good:,} good rows", problems, hint=hint)
    return make_finding(
        "note",
        f"bad rows that were left out of {where}: {n_bad:,} of {n_bad + n_good:,}",
        f"task.yaml allows it (data.skip_bad_rows_up_to: {up_to:g}); corrected, they would count",
        [f"{p.path}:{p.line} {p.rule}" for p in problems],
        n=n_bad,
    )


def load_rows(
    address: object,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    labels: Sequence[str] | None = None,
    folder: Path = Path(),
    max_rows: int | None = None,
) -> Dataset:
    """Return all rows of the source in order, paths relative to `folder`, answers among `labels` if given.

    `address` is a path or another address of the list above; or the rows: dictionaries, a DataFrame, a Dataset of
    `datasets`, an Arrow table.
    Reading a text file takes at most five times its size and some 3 kB a row. Raise DataError with its first
    MAX_PROBLEMS Problems if any row is bad, there are more than `max_rows` or the source cannot be read, ConfigError
    for a wrong environment variable, MissingExtra.
    """
    return load_noted(address, columns=columns, labels=labels, folder=folder, max_rows=max_rows).data


def load_noted(
    address: object,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    labels: Sequence[str] | None = None,
    folder: Path = Path(),
    max_rows: int | None = None,
    skip_bad_rows_up_to: float = 0.0,
    progress: ProgressCallback = no_progress,
    documents: Path | None = None,
) -> LoadedRows:
    """Return the rows as `load_rows` does, with all notes; a share of bad rows in [0, 1] may be left out.

    `documents` is the folder of the files that `columns.file` names; None: that of the rows.
    """
    source = _find(os.fspath(address), folder) if isinstance(address, str | os.PathLike) else _held(address)
    if columns.file:
        source = source._replace(rows=partial(_document_rows, source.rows, documents))
    read = _read(source, columns, labels, ReadBudget(source.where, max_rows, progress))
    skipped = note_skipped(read.problems, read.n_bad, len(read.data), skip_bad_rows_up_to, source.where)
    return read._replace(skipped=skipped)


def load_valid(
    address: str | Path, *, columns: Columns = DEFAULT_COLUMNS, labels: Sequence[str] | None = None
) -> tuple[Dataset, tuple[Problem, ...]]:
    """Return the good rows of the source and the first problems of the others; otherwise as `load_rows`."""
    source = _find(os.fspath(address), Path())
    read = _read(source, columns, labels, ReadBudget(source.where))
    return read.data, read.problems


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage where there are many rows: to look through all of them again takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_collections()
def load_raw(address: str | Path, progress: ProgressCallback = no_progress) -> tuple[list[RawRow], tuple[str, ...]]:
    """Return the rows of a source with all their columns as they stand, and notes on how its files are written.

    A row that cannot be read is the rule that it breaks.
    """
    source = _find(os.fspath(address), Path())
    budget = ReadBudget(source.where, progress=progress)
    return list(source.rows(None, budget)), tuple(budget.notes)


def iterate_raw(address: str | Path, budget: ReadBudget) -> Iterator[RawRow]:
    """Yield the rows that `load_raw` returns, one after the other; what is read in parts is never held whole."""
    yield from _find(os.fspath(address), Path()).rows(None, budget)


def _document_rows(rows: _Rows, folder: Path | None, columns: Columns, *others: Any, **named: Any) -> Iterator[RawRow]:
    """Yield the rows of a source with the texts of their documents."""
    return with_documents(rows(None, *others, **named), columns, folder)


_Rows = Callable[..., Iterable[RawRow]]


class _Source(NamedTuple):
    where: str
    """Address as error messages show it."""
    name: str
    rows: _Rows
    """Its reader, which takes columns, budget and `answered`."""


@without_collections()
def _read(source: _Source, columns: Columns, labels: Sequence[str] | None, budget: ReadBudget) -> LoadedRows:
    """Return the good rows, the first MAX_PROBLEMS rules of the others, and the number of the others.

    A row of another format than most is bad; an empty row is none. Raise DataError if there is no row.
    """
    parser = _Parser(columns, labels)
    parsed: list[_Parsed] = []
    formats: Counter[RowFormat] = Counter()
    n_bad = 0
    for row in filter(None, map(parser.parse, source.rows(columns, budget, answered=labels is not None))):
        if row.format:
            formats[row.format] += 1
        n_bad += bool(row.rules)
        if not row.rules or n_bad <= MAX_PROBLEMS:
            parsed.append(row)
    usual = formats.most_common(1)[0][0] if formats else None
    if len(formats) > 1 and usual:
        whole = "this file" if len({row.path for row in parsed if row.format}) == 1 else "this source"
        for row in parsed:
            if row.format and row.format != usual:
                n_bad += not row.rules
                row.rules.append(f"a row of {ROW_FORMATS[row.format]}, while {whole} has rows of {ROW_FORMATS[usual]}")
    examples = tuple(row.example for row in parsed if row.example and row.format == usual)
    problems = [Problem(row.path, row.line, rule) for row in parsed for rule in row.rules]
    folded = parser.folding.notes
    if not examples and not problems:
        empty = "; ".join(note.what for note in folded)
        raise DataError(f"{source.where}: there are no rows{f' ({empty})' if empty else ''}")
    rule = "told by its content; where that is wrong, save it as UTF-8 CSV with a header, or as JSON Lines"
    told = [
        make_finding("note", f"{files[0]}: {note}", rule, files, n=len(files)) for note, files in budget.notes.items()
    ]
    data = Dataset(name=source.name, examples=examples)
    return LoadedRows(data, tuple(problems[:MAX_PROBLEMS]), n_bad, (*told, *folded))


class _Parsed(NamedTuple):
    path: str
    line: int
    rules: list[str]
    format: RowFormat | None = None
    example: Example | None = None


class _Parser:
    """Makes examples of raw rows, which mostly have the same keys as the one before."""

    def __init__(self, columns: Columns, labels: Sequence[str] | None) -> None:
        self.folding = Folding()
        self._columns = columns
        self._allowed = None if labels is None else dict.fromkeys(label.strip() for label in labels)
        self._keys: tuple[str, ...] | None = None
        self._layout: RowLayout | str = ""

    def parse(self, row: RawRow) -> _Parsed | None:
        """Return the row as an example or with the rules it breaks; None if it is empty."""
        path, line, values = row
        if isinstance(values, str):
            return _Parsed(path, line, [values])
        if tuple(values) != self._keys:
            self._keys = tuple(values)
            self._layout = detect_layout(self._keys, self._columns, answered=self._allowed is not None)
        layout = self._layout
        if not isinstance(layout, str):
            plain = parse_plain_row(values, layout, path=path, line=line, labels=self._allowed)
            if plain is not None:
                return _Parsed(path, line, [], layout.shape, plain)
        if is_empty_row(values, None if isinstance(layout, str) else layout):
            self.folding.count("empty rows", path, line)
            return None
        if isinstance(layout, str):
            return _Parsed(path, line, [layout])
        folded = self.folding.fold(values, layout, path, line)
        example, rules = parse_row(folded, layout, path=path, line=line, labels=self._allowed)
        return _Parsed(path, line, rules, layout.shape, example)


def _held(rows: object) -> _Source:
    """Return rows of this process. Raise DataError if they are none."""
    kind = type(rows).__name__
    records: Any = rows
    if hasattr(rows, "to_pylist"):  # Arrow
        records = rows.to_pylist()
    elif hasattr(rows, "to_dicts"):  # polars
        records = rows.to_dicts()
    elif hasattr(rows, "iloc") and hasattr(rows, "to_dict"):  # pandas
        records = rows.to_dict("records")
    if isinstance(records, Mapping) or not isinstance(records, Iterable):
        hint = "give a path, a list of dicts, a DataFrame (collected), or one split of a DatasetDict"
        raise DataError(f"rows cannot be read from a {kind}", hint=hint)
    names = _label_names(rows)

    def read(columns: Columns | None, budget: ReadBudget, *, answered: bool = False) -> Iterator[RawRow]:
        for number, row in enumerate(records, start=1):
            budget.take(0, 1)
            named = {str(key): value for key, value in row.items()} if isinstance(row, Mapping) else None
            if names and named is not None:
                named |= {name: _spelt(named[name], known) for name, known in names.items() if name in named}
            yield RawRow(kind, number, f"a row must be a dict, not {type(row).__name__}" if named is None else named)

    return _Source(kind, kind, read)


def _label_names(rows: object) -> dict[str, list[str]]:
    """Return the names of labels that a Dataset of `datasets` keeps as numbers, by column."""
    names, features = dict[str, list[str]](), getattr(rows, "features", None)
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        of_items: Any = getattr(feature, "feature", feature)
        if hasattr(of_items, "int2str"):
            names[column] = of_items.names
    return names


def _spelt(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_spelt(one, names) for one in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None  # -1: not labelled


def _find(text: str, folder: Path) -> _Source:
    """Return what the address names. Raise DataError if it names nothing."""
    if "\0" in text:
        raise DataError(f"{text!r}: an address has no NUL character")
    pinned = _PINNED.fullmatch(text)
    plain, version = (pinned["address"], int(pinned["version"])) if pinned else (text, None)
    if folders.is_volume(text):
        return _at(folders.volume_path(plain), version)
    if _SCHEME.match(text):
        raise DataError(f"{text}: not read from there", hint="copy it to this machine, then name the file or folder")
    path = folder / text
    if path.exists():
        return _at(path)
    if version is not None and (folder / plain).exists():
        return _at(folder / plain, version)
    kind = file_format(path)
    if kind in (PARQUET, *folders.TEXT_SUFFIXES, *WORKBOOKS):
        raise DataError(f"{path}: no such file", hint=suggest_files(path.parent, path.name))
    if kind not in FORMATS and _TABLE.fullmatch(plain):
        return _delta(_table_folder(plain, path), plain, version)
    return _at(path)  # which says what is wrong with it


def _at(path: Path, version: int | None = None) -> _Source:
    """Return the file or folder; `read_text_file` refuses any other and says what a folder holds."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path}: neither a file nor a folder", hint="write its rows to a file, and name that")
    name, reader = Path(os.path.realpath(path)).name, partial(read_text_file, path)
    suffix = path.suffix.lower()
    if version is not None or (path / DELTA_LOG).is_dir():
        return _delta(path, name, version)
    if path.is_dir():
        files = folders.list_files(path)
        suffixes = {file.path.suffix.lower() for file in files}
        if PARQUET in suffixes and suffixes & set(folders.TEXT_SUFFIXES):
            raise DataError(f"{path}: holds both Parquet and text", hint="move one kind into a folder of its own")
        if PARQUET in suffixes:
            reader = partial(read_parquet, parquet_files(path))
        elif suffixes & set(folders.TEXT_SUFFIXES):
            reader = partial(folders.read_texts, files, labelled=folders.label_folders(path, files))
    elif suffix in WORKBOOKS:
        reader = partial(read_workbook, path)
    elif suffix in (PARQUET, *folders.TEXT_SUFFIXES):
        reader = partial(read_parquet if suffix == PARQUET else folders.read_texts, [folders.FoundFile(path, None)])
    return _Source(str(path), name, reader)


def _delta(folder: Path, name: str, version: int | None) -> _Source:
    table = open_delta(folder, version)
    pinned = f"{name}@v{table.version()}"
    return _Source(pinned, pinned, partial(read_delta, table, folder))


def _table_folder(name: str, path: Path) -> Path:
    """Return the folder of a table named catalog.schema.table. Raise DataError naming the nearest, or how to set it."""
    root = folders.folder_from_variable(TABLES_VARIABLE)
    if root is None:
        raise DataError(
            f"{name}: neither a file ({path}) nor, without {TABLES_VARIABLE}, a table that can be found",
            hint=f"set {TABLES_VARIABLE} to the folder that holds catalog/schema/table, or give the table's folder",
        )
    folder = folders.safe_join(root, name.split("."))
    if not folder.is_dir():
        there = [".".join(log.parent.relative_to(root).parts) for log in root.glob(f"*/*/*/{DELTA_LOG}")]
        raise DataError(f"{name}: no such table below {root}{did_you_mean(name, there)}", hint=f"ls {root}/*/*")
    return folder
