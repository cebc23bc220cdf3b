"""Load rows from wherever they are, all under the same rules. What exists under a path hides what has that name.

rows.jsonl · rows.csv.gz                JSON Lines and CSV, also gzipped
rows.parquet · folder of these          Parquet
folder with _delta_log · …@v7           a Delta table, newest or at version 7
catalog.schema.table · …@v7             the same below SMALLFIRST_TABLES
folder of .txt and .md                  text to continue, a row a file
[dbfs:]/Volumes/catalog/schema/vol/…    any of these in a volume
[owner/]name/split                      a data set of the Hugging Face hub
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from smallfirst.data.dataset import Dataset, Example, RowFormat
from smallfirst.data.row_formats import ROW_FORMATS, Columns, detect_layout, parse_row
from smallfirst.data.sources.delta import DELTA_LOG, open_delta, read_delta
from smallfirst.data.sources.folders import TEXT_SUFFIXES, FoundFile, list_files, read_texts, safe_join
from smallfirst.data.sources.hub import is_hub_name, open_hub, pinned_hub_name, read_hub
from smallfirst.data.sources.parquet import PARQUET, parquet_files, read_parquet
from smallfirst.data.sources.reader import RawRow, ReadBudget
from smallfirst.data.sources.text_files import FORMATS, file_format, read_text_file, suggest_files
from smallfirst.data.sources.volumes import folder_from_variable, is_volume, volume_path
from smallfirst.errors import DataError, Problem, did_you_mean

MAX_PROBLEMS = 10_000
"""Problems of one source that are kept; all bad rows are counted."""
DEFAULT_COLUMNS = Columns()
"""The usual column names."""
TABLES_VARIABLE = "SMALLFIRST_TABLES"
"""Environment variable: the folder in which tables stand as catalog/schema/table."""
_TABLE = re.compile(r"[^./\\@]+(?:\.[^./\\@]+){2}")
_PINNED = re.compile(r"(?P<address>.+)@v(?P<version>\d{1,18})", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def load_rows(
    address: str | Path,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    labels: Sequence[str] | None = None,
    folder: Path = Path(),
    max_rows: int | None = None,
) -> Dataset:
    """Return all rows of the source in order, paths relative to `folder`, answers among `labels` if given.

    Reading a text file takes at most four times its size and some 3 kB a row. Raise DataError with its first
    MAX_PROBLEMS Problems if any row is bad, there are more than `max_rows` or the source cannot be read, ConfigError
    for a wrong environment variable, MissingExtra.
    """
    source = _find(os.fspath(address), folder)
    data, problems, n_bad = source.read(columns, labels, max_rows)
    if problems:
        raise DataError(
            f"{source.where}: {n_bad:,} bad and {len(data):,} good rows",
            problems,
            hint="fix these lines; map columns of other names with Columns(text=…, label=…)",
        )
    return data


def load_valid(
    address: str | Path,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    labels: Sequence[str] | None = None,
    folder: Path = Path(),
) -> tuple[Dataset, tuple[Problem, ...]]:
    """Return the good rows of the source and the first problems of the others; otherwise as `load_rows`."""
    data, problems, _ = _find(os.fspath(address), folder).read(columns, labels)
    return data, problems


class _Reader(Protocol):
    def __call__(self, columns: Columns, budget: ReadBudget, *, answered: bool) -> Iterable[RawRow]: ...


class _Source(NamedTuple):
    where: str
    """Address as error messages show it."""
    name: str
    rows: _Reader

    def read(
        self, columns: Columns, labels: Sequence[str] | None, max_rows: int | None = None
    ) -> tuple[Dataset, tuple[Problem, ...], int]:
        rows = self.rows(columns, ReadBudget(self.where, max_rows), answered=labels is not None)
        data, problems, n_bad = build_dataset(rows, self.name, columns=columns, labels=labels)
        if not len(data) and not problems:
            raise DataError(f"{self.where}: there are no rows")
        return data, problems, n_bad


class _Parsed(NamedTuple):
    path: str
    line: int
    format: RowFormat | None
    example: Example | None
    rules: list[str]


def build_dataset(
    rows: Iterable[RawRow], name: str, *, columns: Columns, labels: Sequence[str] | None
) -> tuple[Dataset, tuple[Problem, ...], int]:
    """Return the good rows as a Dataset, the first MAX_PROBLEMS of the others, and the number of the others.

    A row of another format than most is bad.
    """
    allowed = dict.fromkeys(labels) if labels is not None else None
    parsed: list[_Parsed] = []
    formats: Counter[RowFormat] = Counter()
    n_bad = 0
    for row in (_parse(row, columns, allowed) for row in rows):
        formats.update([row.format] if row.format else [])
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
    problems = (Problem(row.path, row.line, rule) for row in parsed for rule in row.rules)
    return Dataset(name=name, examples=examples), tuple(islice(problems, MAX_PROBLEMS)), n_bad


def _parse(row: RawRow, columns: Columns, labels: dict[str, None] | None) -> _Parsed:
    path, line, values = row
    if isinstance(values, str):
        return _Parsed(path, line, None, None, [values])
    layout = detect_layout(values, columns, answered=labels is not None)
    if isinstance(layout, str):
        return _Parsed(path, line, None, None, [layout])
    example, rules = parse_row(values, layout, path=path, line=line, labels=labels)
    return _Parsed(path, line, layout.shape, example, rules)


def _find(text: str, folder: Path) -> _Source:
    """Return what the address names. Raise DataError if it names nothing."""
    if "\0" in text:
        raise DataError(f"{text!r}: an address has no NUL character")
    pinned = _PINNED.fullmatch(text)
    plain, version = (pinned["address"], int(pinned["version"])) if pinned else (text, None)
    if is_volume(text):
        return _at(volume_path(plain), version)
    if _SCHEME.match(text):
        raise DataError(f"{text}: not read from there", hint="copy it to this machine, then name the file or folder")
    path = folder / text
    if path.exists():
        return _at(path)
    if version is not None and (folder / plain).exists():
        return _at(folder / plain, version)
    if file_format(path) in (PARQUET, *TEXT_SUFFIXES):
        raise DataError(f"{path}: no such file", hint=suggest_files(path.parent, path.name))
    if file_format(path) not in FORMATS and _TABLE.fullmatch(plain):
        return _delta(_table_folder(plain, path), plain, version)
    if file_format(path) not in FORMATS and is_hub_name(text):
        data = open_hub(text)
        return _Source(text, pinned_hub_name(data, text), partial(read_hub, data, text))
    return _Source(str(path), path.name, partial(read_text_file, path))  # which says what is wrong with it


def _at(path: Path, version: int | None = None) -> _Source:
    name = path.resolve().name
    if version is not None or (path / DELTA_LOG).is_dir():
        return _delta(path, name, version)
    if path.is_dir():
        return _folder(path, name)
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        return _Source(str(path), name, partial(read_parquet, [FoundFile(path, None)]))
    if suffix in TEXT_SUFFIXES:
        return _Source(str(path), name, partial(read_texts, [FoundFile(path, None)]))
    return _Source(str(path), path.name, partial(read_text_file, path))


def _folder(path: Path, name: str) -> _Source:
    """Return a folder of Parquet or of text; `read_text_file` refuses any other and lists what it holds."""
    files = list_files(path)
    suffixes = {file.path.suffix.lower() for file in files}
    if PARQUET in suffixes and suffixes & set(TEXT_SUFFIXES):
        raise DataError(f"{path}: holds both Parquet and text", hint="move one kind into a folder of its own")
    if PARQUET in suffixes:
        return _Source(str(path), name, partial(read_parquet, parquet_files(path)))
    if suffixes & set(TEXT_SUFFIXES):
        return _Source(str(path), name, partial(read_texts, files))
    return _Source(str(path), name, partial(read_text_file, path))


def _delta(folder: Path, name: str, version: int | None) -> _Source:
    table = open_delta(folder, version)
    pinned = f"{name}@v{table.version()}"
    return _Source(pinned, pinned, partial(read_delta, table, folder))


def _table_folder(name: str, path: Path) -> Path:
    """Return the folder of a table named catalog.schema.table. Raise DataError naming the nearest, or how to set it."""
    chosen = os.environ.get(TABLES_VARIABLE, "").strip()
    if not chosen:
        raise DataError(
            f"{name}: neither a file ({path}) nor, without {TABLES_VARIABLE}, a table that can be found",
            hint=f"set {TABLES_VARIABLE} to the folder that holds catalog/schema/table, or give the table's folder",
        )
    root = folder_from_variable(TABLES_VARIABLE, chosen)
    folder = safe_join(root, name.split("."))
    if not folder.is_dir():
        there = [".".join(log.parent.relative_to(root).parts) for log in root.glob(f"*/*/*/{DELTA_LOG}")]
        raise DataError(f"{name}: no such table below {root}{did_you_mean(name, there)}", hint=f"ls {root}/*/*")
    return folder
