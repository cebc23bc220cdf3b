"""Read the rows of a source with all their columns: a file, a folder of files, a document, or an address of rows."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.sources.folders import TEXT_SUFFIXES
from smallfirst.data.sources.load import load_raw
from smallfirst.data.sources.parquet import PARQUET
from smallfirst.data.sources.reader import RawRow, SourceFormat
from smallfirst.data.sources.spreadsheets import SPREADSHEETS
from smallfirst.data.sources.text_files import FORMATS, file_format

_PARTS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "eval")}
_KNOWN = (*FORMATS, PARQUET, *SPREADSHEETS, *TEXT_SUFFIXES)


class Source(NamedTuple):
    """The rows of a source."""

    rows: list[RawRow]
    formats: tuple[SourceFormat, ...]
    as_it_stands: bool
    """True if `load_rows` reads the same rows from the same address."""
    parts: dict[str, Path]
    """Files of a folder by the part of the rows that their names say: train, validation, test."""


def read_source(address: str) -> Source:
    """Return the rows of the source; of a folder with train and test files those to train on. Raise DataError."""
    path = Path(address)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file_format(file) in FORMATS)
        parts = {part: file for part, names in _PARTS.items() for file in files if _stem(file) in names}
        if "train" in parts and len(parts) == len(files):
            return Source(*load_raw(parts["train"]), True, parts)
        if files:
            return _joined(map(load_raw, files))
    elif file_format(path) == ".json" and (document := _document(path)):
        return Source([RawRow(address, 1, document)], (), False, {})
    elif path.is_file() and file_format(path) not in _KNOWN:
        return _without_suffix(path)
    rows, formats = load_raw(address)
    if len(rows) > 1 and len({row.line for row in rows}) == 1 and len({row.path for row in rows}) == 1:
        rows = [row._replace(line=n) for n, row in enumerate(rows, 1)]  # a list on one line: count its items
    return Source(rows, formats, True, {})


def _stem(file: Path) -> str:
    return file.name.partition(".")[0].casefold()


def _joined(read: Iterable[tuple[list[RawRow], tuple[SourceFormat, ...]]]) -> Source:
    pieces = list(read)
    formats = tuple(one for _, formats in pieces for one in formats)
    return Source([row for rows, _ in pieces for row in rows], formats, False, {})


def _without_suffix(path: Path) -> Source:
    """Read a file whose name does not tell its format: JSON if it begins so, else a table."""
    with path.open("rb") as file:
        head = file.read(100).lstrip()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "rows.jsonl" if head[:1] in (b"{", b"[") else "rows.csv")
        shutil.copyfile(path, copy)
        rows, formats = load_raw(copy)
    named = [row._replace(path=str(path)) for row in rows]
    return Source(named, tuple(one.model_copy(update={"path": str(path)}) for one in formats), False, {})


def _document(path: Path) -> dict[str, Any] | None:
    """Return the object that a JSON file is as a whole; None if it is rows."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        return None
    return value if isinstance(value, dict) else None
