"""Workbooks made by hand: the parts of an .xlsx file are XML in a zip archive."""

import zipfile
from pathlib import Path

import pytest

import smallfirst
from smallfirst.base.errors import DataError
from smallfirst.data.sources.load import load_noted, load_rows
from smallfirst.path.project.rows import read_rows

pytest.importorskip("python_calamine")
_MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_DOCUMENT = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"


def workbook(path: Path, **sheets: str) -> Path:
    """Write a workbook with a sheet of these cells, as XML, for each name."""
    listed = "".join(f'<sheet name="{n}" sheetId="{i}" r:id="r{i}"/>' for i, n in enumerate(sheets, start=1))
    related = "".join(
        f'<Relationship Id="r{i}" Type="{_DOCUMENT}/worksheet" Target="worksheets/{i}.xml"/>'
        for i, _ in enumerate(sheets, start=1)
    )
    relations = f'<Relationships xmlns="{_RELATIONS}">{{}}</Relationships>'
    book = f'<workbook {_MAIN} xmlns:r="{_DOCUMENT}"><sheets>{listed}</sheets></workbook>'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(
            "_rels/.rels",
            relations.format(f'<Relationship Id="r" Type="{_DOCUMENT}/officeDocument" Target="xl/workbook.xml"/>'),
        )
        file.writestr("xl/workbook.xml", book)
        file.writestr("xl/_rels/workbook.xml.rels", relations.format(related))
        for i, cells in enumerate(sheets.values(), start=1):
            file.writestr(f"xl/worksheets/{i}.xml", f"<worksheet {_MAIN}><sheetData>{cells}</sheetData></worksheet>")
    return path


def row(number: int, *values: str | float) -> str:
    cells = [
        f'<c r="{"ABC"[i]}{number}" t="inlineStr"><is><t>{value}</t></is></c>'
        if isinstance(value, str)
        else f'<c r="{"ABC"[i]}{number}" t="{"b" if isinstance(value, bool) else "n"}"><v>{value:d}</v></c>'
        for i, value in enumerate(values)
    ]
    return f'<row r="{number}">{"".join(cells)}</row>'


def test_the_first_sheet_with_rows_is_read_by_load_init_and_a_task_file(tmp_path: Path) -> None:
    header = row(1, "Text", "Label", "Sure")
    cells = (
        header
        + row(2, "lost\nit", 1, True)
        + "".join(row(n, f"it is late, says {n}", n % 2, False) for n in range(4, 40))
    )
    path = workbook(tmp_path / "rows.xlsx", Cover="", Rows=cells, Old=row(1, "a"))
    read = load_noted(path)
    assert [(e.text, e.answer, e.line) for e in read.data.examples[:2]] == [
        ("lost\nit", "1", 2),
        ("it is late, says 4", "0", 4),
    ]
    assert [note.what for note in read.notes] == [
        f'{path}: read from sheet "Rows" alone, the first with rows',
        "empty rows: 1 row",
    ]
    task = smallfirst.init(str(tmp_path / "task"), from_=str(path))
    assert len(read_rows(task).train) > 15


@pytest.mark.parametrize(
    "cells", ["", row(1, "text", "label") + '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>']
)
def test_an_empty_sheet_and_one_that_claims_more_than_memory_are_refused(tmp_path: Path, cells: str) -> None:
    with pytest.raises(DataError, match="memory allocation of" if cells else "there are no rows"):
        load_rows(workbook(tmp_path / "rows.xlsx", Rows=cells))


def test_what_is_no_workbook_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    with pytest.raises(DataError, match="no such file"):
        load_rows(path)
    path.write_bytes(b"text,label\n")
    with pytest.raises(DataError, match=r"not readable as a workbook: .*\n  next: save the sheet as CSV"):
        load_rows(path)
