"""Rows of a workbook: the first sheet with rows, each cell as the text that JSON or CSV would have."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smallfirst.base.errors import DataError, MissingExtra
from smallfirst.data.row_formats import Columns, scalar_text
from smallfirst.data.sources.reader import RawRow, ReadBudget, first_line, row_size_rule
from smallfirst.data.sources.text_files import TableRecord, table_rows

SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
"""Suffixes of the workbooks that are read."""
MAX_UNPACKED_BYTES = 500_000_000
"""A workbook is held in memory, and a small file may unpack to any size."""


def read_spreadsheet(
    file: Path, columns: Columns | None, budget: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """Return the rows of the first sheet that has any, numbered as the program shows them.

    Raise DataError if the file cannot be read, MissingExtra.
    """
    try:
        import python_calamine
    except ImportError:
        raise MissingExtra("reading a workbook", "tables") from None
    _refuse_too_large(file)
    try:
        book = python_calamine.CalamineWorkbook.from_path(str(file))
        sheets = {name: book.get_sheet_by_name(name) for name in book.sheet_names}
        filled = [name for name, sheet in sheets.items() if sheet.height]
        cells = sheets[filled[0]].to_python(skip_empty_area=False) if filled else []
    except (python_calamine.CalamineError, OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as a workbook: {first_line(error)}") from None
    rows = table_rows(_records(cells), columns, answered=answered)
    if len(filled) > 1:
        budget.note(str(file), f'read from sheet "{filled[0]}", not from {", ".join(filled[1:])}')
    return budget.counted(str(file), rows)


def _records(cells: list[list[Any]]) -> Iterator[TableRecord]:
    for number, row in enumerate(cells, start=1):
        texts = [_text(cell) for cell in row]
        yield number, row_size_rule(sum(map(len, texts))) or texts


def _text(cell: Any) -> str:
    is_date = isinstance(cell, datetime.date | datetime.time)
    return cell.isoformat().removesuffix("T00:00:00") if is_date else scalar_text(cell)


def _refuse_too_large(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as packed:
            n_bytes = sum(part.file_size for part in packed.infolist())
    except (zipfile.BadZipFile, OSError):
        n_bytes = file.stat().st_size if file.exists() else 0  # an older format, or an error that the reader will name
    if n_bytes > MAX_UNPACKED_BYTES:
        raise DataError(
            f"{file}: {n_bytes:,} bytes unpacked; at most {MAX_UNPACKED_BYTES:,} are read of a workbook",
            hint="save the sheet as CSV",
        )
