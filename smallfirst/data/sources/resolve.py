"""One door for rows, wherever they come from: files, folders, tables, volumes, the hub; all under the same rules.

The address alone says what is read. What stands on this machine under that path is always taken first; only then is the
address a name. The price: a file that is called like a table hides the table.

    rows.jsonl · rows.csv.gz                JSON Lines and CSV, also packed (smallfirst.data.sources.text_files)
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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from smallfirst.data.dataset import Dataset
from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.delta import DELTA_LOG, open_delta, read_delta
from smallfirst.data.sources.folders import TEXT_SUFFIXES, FoundFile, list_files, read_texts, safe_join
from smallfirst.data.sources.hub import is_hub_name, open_hub, pinned_hub_name, read_hub
from smallfirst.data.sources.parquet import PARQUET, parquet_files, read_parquet
from smallfirst.data.sources.reader import RawRow, ReadBudget, build_dataset, require_valid
from smallfirst.data.sources.text_files import DEFAULT_COLUMNS, FORMATS, file_format, load_valid_rows, suggest_files
from smallfirst.data.sources.volumes import folder_from_variable, is_volume, volume_path
from smallfirst.errors import DataError, Problem, did_you_mean

TABLES_VARIABLE = "SMALLFIRST_TABLES"
"""Environment variable: the folder in which tables stand as catalog/schema/table."""
_TABLE = re.compile(r"[^./\\@]+(?:\.[^./\\@]+){2}")
_PINNED = re.compile(r"(?P<address>.+)@v(?P<version>\d{1,18})", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def open_source(
    address: str | Path,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    labels: Sequence[str] | None = None,
    folder: Path = Path(),
) -> Dataset:
    """All rows of the source in order; the name of the Dataset tells the version where there is one.

    With `labels`, every answer must be one of them. Paths are relative to `folder`. Raises DataError with all its
    Problems if any row is bad or the source cannot be read, ConfigError for a wrong environment variable, MissingExtra.
    """
    source = _find(os.fspath(address), folder)
    return require_valid(source.where, *source.read(columns, labels))


def read_source(
    address: str | Path,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    labels: Sequence[str] | None = None,
    folder: Path = Path(),
) -> tuple[Dataset, tuple[Problem, ...]]:
    """The good rows of the source, and the problems of the others; otherwise as `open_source`."""
    return _find(os.fspath(address), folder).read(columns, labels)


class _Source(NamedTuple):
    """Where rows are, found but not read."""

    where: str
    """As it is told."""
    name: str
    """What the Dataset is called."""
    rows: Callable[[Columns, ReadBudget, bool], Iterable[RawRow]] | None
    """The rows, given the columns, how much may be read, and whether each must have an answer; None: `load` knows."""

    def read(self, columns: Columns, labels: Sequence[str] | None) -> tuple[Dataset, tuple[Problem, ...]]:
        if self.rows is None:
            return load_valid_rows(self.where, columns=columns, labels=labels)
        rows = self.rows(columns, ReadBudget(self.where), labels is not None)
        return build_dataset(rows, self.name, columns=columns, labels=labels, empty=f"{self.where}: there are no rows")


def _find(text: str, folder: Path) -> _Source:
    """What the address stands for. Raises DataError if it stands for nothing."""
    if "\0" in text:
        raise DataError(f"{text!r}: an address has no NUL character")
    plain, version = _pinned(text)
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
        return _Source(text, pinned_hub_name(data, text), lambda c, a, must: read_hub(data, text, c, a, answered=must))
    return _Source(str(path), path.name, None)  # `load` says what is wrong with it


def _at(path: Path, version: int | None = None) -> _Source:
    """The source that stands at a path of this machine."""
    name = path.resolve().name
    if version is not None or (path / DELTA_LOG).is_dir():
        return _delta(path, name, version)
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder(path, name)
    if suffix == PARQUET:
        return _Source(str(path), name, lambda c, a, must: read_parquet([FoundFile(path, None)], c, a, answered=must))
    if suffix in TEXT_SUFFIXES:
        return _Source(str(path), name, lambda c, a, _: read_texts([FoundFile(path, None)], c.text, a))
    return _Source(str(path), path.name, None)


def _folder(path: Path, name: str) -> _Source:
    """A folder of Parquet, or of text; any other one is refused by `load`, which tells what it holds."""
    files = list_files(path)
    suffixes = {file.path.suffix.lower() for file in files}
    if PARQUET in suffixes and suffixes & set(TEXT_SUFFIXES):
        raise DataError(f"{path}: holds both Parquet and text", hint="move one kind into a folder of its own")
    if PARQUET in suffixes:
        parts = parquet_files(path)
        return _Source(str(path), name, lambda c, a, must: read_parquet(parts, c, a, answered=must))
    if suffixes & set(TEXT_SUFFIXES):
        return _Source(str(path), name, lambda c, a, _: read_texts(files, c.text, a))
    return _Source(str(path), name, None)


def _delta(folder: Path, name: str, version: int | None) -> _Source:
    table = open_delta(folder, version)
    pinned = f"{name}@v{table.version()}"
    return _Source(pinned, pinned, lambda c, a, must: read_delta(table, folder, c, a, answered=must))


def _pinned(text: str) -> tuple[str, int | None]:
    """The address without `@v7`, and the 7."""
    found = _PINNED.fullmatch(text)
    return (found["address"], int(found["version"])) if found else (text, None)


def _table_folder(name: str, path: Path) -> Path:
    """The folder of a table named catalog.schema.table. Raises DataError naming the nearest, or how to set it."""
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
