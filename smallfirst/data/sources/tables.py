"""Rows of a table whose first line names the columns: CSV with any separator, and sheets of a workbook."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

from smallfirst.data.row_formats import Columns, detect_layout
from smallfirst.data.sources.reader import NumberedRow

DELIMITERS = (",", ";", "\t", "|")
NO_HEADER = "its first line is a row: columns are named by their place, column 1, column 2, …"
_LOOKED_AT = 50
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*")
_SENTENCE = re.compile(r"(\S+\s+){2,}\S*[.?!]|.{60,}", re.DOTALL)
_NUMBERED = re.compile(r"column [1-9]\d*")

TableRecord = tuple[int, list[str] | str]
"""Line from 1, and the fields of a record or the rule that it breaks."""


class TableRows(NamedTuple):
    """A table's rows by column name."""

    has_header: bool
    rows: Iterator[NumberedRow]


def detect_delimiter(sample: str, usual: str, columns: Columns | None, *, answered: bool) -> str:
    """Return what separates the fields in the first lines of a CSV file.

    Names that make a row format decide; else how many records have as many fields as the first; else `usual`.
    """

    def fit(delimiter: str) -> tuple[bool, float, bool, int]:
        records = [record for record in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if record]
        head = records[0] if records else []
        if len(head) < 2:
            return False, 0.0, delimiter == usual, 0
        named = columns is not None and not isinstance(detect_layout(_names(head), columns, answered=answered), str)
        share = sum(len(record) == len(head) for record in records) / len(records)
        return named, share, delimiter == usual, len(head)

    return max(DELIMITERS, key=fit)


def table_rows(records: Iterator[TableRecord], columns: Columns | None, *, answered: bool) -> TableRows:
    """Return the rows by the names on the first line, or by `column 1`, `column 2`, … where it has none.

    A header that makes no row format is the only, bad row; without `columns` any header will do.
    """
    first = list(islice(records, _LOOKED_AT))
    while first and not _filled(first[0]):
        del first[0]
    if not first:
        return TableRows(True, iter(()))
    at, head = first[0]
    if isinstance(head, str):
        return TableRows(True, iter([(at, head)]))
    header, body = _names(head), chain(first[1:], records)
    rule = _header_rule(header, columns, answered=answered)
    below = [fields for _, fields in first[1:] if isinstance(fields, list)]
    numbered = columns is not None and _names_places(columns)
    bare = bool(rule and numbered) or (bool(rule or columns is None) and _is_row(head, below))
    if bare:
        header, body = [f"column {i}" for i in range(1, len(head) + 1)], chain(first, records)
        rule = _header_rule(header, columns, answered=answered) and _no_header(head)
    rows: Iterator[NumberedRow] = iter([(at, rule)]) if rule else (_row(record, header) for record in body)
    return TableRows(not bare, rows)


def _row(record: TableRecord, header: Sequence[str]) -> NumberedRow:
    line, fields = record
    if isinstance(fields, str):
        return line, fields
    while len(fields) > len(header) and not fields[-1].strip():  # spreadsheets write empty fields to the right
        fields = fields[:-1]
    if not any(field.strip() for field in fields):
        return line, {}
    if len(fields) != len(header):
        return line, f"{len(fields)} fields where the header has {len(header)}"
    return line, dict(zip(header, fields, strict=True))


def _filled(record: TableRecord) -> bool:
    return isinstance(record[1], str) or any(field.strip() for field in record[1])


def _names(head: Sequence[str]) -> list[str]:
    """Return the names of a header; an unnamed column, as pandas writes its index, is called by its place."""
    trimmed = [name.replace("\ufeff", "").strip() for name in head]
    return [name or f"column {i}" for i, name in enumerate(trimmed, start=1)]


def _header_rule(header: Sequence[str], columns: Columns | None, *, answered: bool) -> str:
    if twice := [name for name, n in Counter(header).items() if n > 1]:
        return f'column "{twice[0]}" twice in the header'
    found = "" if columns is None else detect_layout(header, columns, answered=answered)
    return found if isinstance(found, str) else ""


def _is_row(head: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Return True if the first line is a row: it has a number, a sentence, or a value that comes again below it."""
    if any(_NUMBER.fullmatch(field.strip()) or _SENTENCE.fullmatch(field.strip()) for field in head):
        return True
    return any(field and field in {r[i] for r in others if i < len(r)} for i, field in enumerate(head))


def _names_places(columns: Columns) -> bool:
    lists = {"fields", "tags"}
    named = [*columns.fields, *columns.tags, *(getattr(columns, f) for f in columns.model_fields_set - lists)]
    return any(_NUMBERED.fullmatch(name) for name in named)


def _no_header(head: Sequence[str]) -> str:
    shown = ", ".join(f'{i}: "{field[:40]}"' for i, field in enumerate(head[:5], start=1))
    return (
        f"the first line names no columns but is a row ({shown}): add a header, or name them by their place, such as "
        'columns: {text: "column 1", label: "column 2"}'
    )
