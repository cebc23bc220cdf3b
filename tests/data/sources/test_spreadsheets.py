"""Workbooks made by hand: the parts of an .xlsx file are XML in a zip archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from smallfirst.base.errors import DataError
from smallfirst.data.sources import spreadsheets
from smallfirst.data.sources.load import load_noted, load_rows

pytest.importorskip("python_calamine")
_MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_DOCUMENT = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def workbook(path: Path, **sheets: list[list[object]]) -> Path:
    """Write a workbook with a sheet of these cells for each name."""
    ids = {name: f"sheet{i}" for i, name in enumerate(sheets, start=1)}
    listed = "".join(f'<sheet name="{n}" sheetId="{i[5:]}" r:id="{i}"/>' for n, i in ids.items())
    parts = "".join(
        f'<Override PartName="/xl/worksheets/{i}.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        'spreadsheetml.worksheet+xml"/>'
        for i in ids.values()
    )
    related = "".join(
        f'<Relationship Id="{i}" Type="{_DOCUMENT}/worksheet" Target="worksheets/{i}.xml"/>' for i in ids.values()
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("[Content_Types].xml", f'<Types xmlns="{_PACKAGE}/content-types">{parts}</Types>')
        file.writestr(
            "xl/workbook.xml", f'<workbook {_MAIN} xmlns:r="{_DOCUMENT}"><sheets>{listed}</sheets></workbook>'
        )
        relations = f'<Relationships xmlns="{_PACKAGE}/relationships">{{}}</Relationships>'
        file.writestr("xl/_rels/workbook.xml.rels", relations.format(related))
        top = f'<Relationship Id="r" Type="{_DOCUMENT}/officeDocument" Target="xl/workbook.xml"/>'
        file.writestr("_rels/.rels", relations.format(top))
        for name, id in ids.items():
            rows = "".join(
                f'<row r="{r}">{"".join(_cell(c, r, value) for c, value in zip("ABC", row, strict=False))}</row>'
                for r, row in enumerate(sheets[name], start=1)
            )
            file.writestr(f"xl/worksheets/{id}.xml", f"<worksheet {_MAIN}><sheetData>{rows}</sheetData></worksheet>")
    return path


def _cell(column: str, row: int, value: object) -> str:
    if isinstance(value, bool):
        return f'<c r="{column}{row}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, int | float):
        return f'<c r="{column}{row}"><v>{value}</v></c>'
    return f'<c r="{column}{row}" t="inlineStr"><is><t>{value}</t></is></c>' if value is not None else ""


def test_the_first_sheet_with_rows_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    rows = [["Text", "Label", "Sure"], ["lost it", 1, True], [None, None], ["late", 0, False]]
    read = load_noted(workbook(tmp_path / "rows.xlsx", Cover=[], Rows=rows, Old=[["a"]]))
    assert [(e.text, e.answer, e.line) for e in read.data.examples] == [("lost it", "1", 2), ("late", "0", 4)]
    assert [note.what for note in read.notes] == [
        f'{tmp_path}/rows.xlsx: read from sheet "Rows", not from Old',
        "empty rows: 1 row",
    ]


def test_a_workbook_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no rows"):
        load_rows(workbook(tmp_path / "rows.xlsx", Cover=[]))


def test_what_is_no_workbook_or_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.xlsx"
    path.write_bytes(b"text,label\n")
    with pytest.raises(DataError, match="not readable as a workbook: "):
        load_rows(path)
    monkeypatch.setattr(spreadsheets, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(DataError, match=r"bytes unpacked; at most 1,000 are read of a workbook\n  next: save"):
        load_rows(workbook(path, Rows=[["text", "label"], ["a", "x"]]))
    with pytest.raises(DataError, match="no such file"):
        load_rows(tmp_path / "other.xlsx")
