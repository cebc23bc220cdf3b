"""Rows of a workbook: the first sheet with rows, each cell as the text that CSV would have.

A file of kilobytes may claim a sheet of any size, so a child process of bounded memory unpacks it.
"""

from __future__ import annotations

import datetime
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smallfirst.base.errors import DataError, MissingExtra
from smallfirst.data.row_formats import Columns, scalar_text
from smallfirst.data.sources.text_files import RawRow, ReadBudget, TableRecord, first_line, row_size_rule, table_rows

WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods")
MAX_MEMORY_BYTES = 2_000_000_000
"""Of the process that unpacks a workbook; macOS does not enforce it."""


def read_workbook(
    file: Path, columns: Columns | None, budget: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """Yield the rows, numbered as the program shows them. Raise DataError if the file cannot be read, MissingExtra."""
    if find_spec("python_calamine") is None:
        raise MissingExtra("reading a workbook", "tables")
    command = [sys.executable, "-P", "-m", "smallfirst.data.sources.workbooks", str(file.resolve())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stderr

        def records() -> Iterator[TableRecord]:
            for number, line in enumerate(child.stdout or (), start=1):
                budget.take(len(line), 1)
                yield number, json.loads(line)

        for number, values in table_rows(records(), columns, answered=answered):
            yield RawRow(str(file), number, values)
        for line in child.stdout:  # after a header that makes no row format
            budget.take(len(line))
        said = child.stderr.read().decode(errors="replace")
    if child.returncode:
        hint = "save the sheet as CSV"
        raise DataError(f"{file}: not readable as a workbook: {first_line(ValueError(said))}", hint=hint)
    if said:
        budget.note(str(file), said)


def main(file: str) -> None:
    """Print the rows of a workbook as JSON, a list of texts or a broken rule a line, and what is left out on stderr."""
    import python_calamine

    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        book = python_calamine.CalamineWorkbook.from_path(file)
        sheet = next((one for one in map(book.get_sheet_by_name, book.sheet_names) if one.height), None)
        for row in sheet.iter_rows() if sheet else ():
            texts = [_text(cell) for cell in row]
            print(json.dumps(row_size_rule(sum(map(len, texts))) or texts))
    except Exception as error:  # a library may fail on a file in any way
        sys.exit(first_line(error))
    if sheet and len(book.sheet_names) > 1:
        sys.stderr.write(f'read from sheet "{sheet.name}" alone, the first with rows')


def _text(cell: Any) -> str:
    is_date = isinstance(cell, datetime.date | datetime.time)
    return cell.isoformat().removesuffix("T00:00:00") if is_date else scalar_text(cell)


if __name__ == "__main__":
    main(sys.argv[1])
