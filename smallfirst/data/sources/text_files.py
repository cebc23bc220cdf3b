"""Rows of JSON Lines, JSON lists and CSV, each line as values by column or as the rule that it breaks.

Encoding and separator are told from the content.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.encodings import to_utf8
from smallfirst.data.sources.reader import (
    MAX_ROW_BYTES,
    NumberedRow,
    RawRow,
    ReadBudget,
    SourceFormat,
    row_size_rule,
)
from smallfirst.data.sources.tables import NO_HEADER, TableRecord, TableRows, detect_delimiter, table_rows
from smallfirst.errors import DataError

_JSON = (".jsonl", ".ndjson", ".json")
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*_JSON, *_SEPARATORS)
"""Suffixes of the files that are read; each may have `.gz` after it."""
_PIECE_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 16
_FIRST_CHARACTERS = 1 << 14
"""Characters in which the end of an item is looked for first."""
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()

_BLANK = " \t\r"  # not str.strip(): U+2028 and its like are text, not blank


class _Line(NamedTuple):
    """One physical line, split on the line feed only."""

    text: str
    n_bytes: int
    rule: str | None
    """Why its bytes are not text, if they are not."""


def read_text_file(
    file: Path, columns: Columns | None, budget: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """Yield the rows of a file with a suffix of FORMATS, perhaps gzipped; without `columns` any names will do.

    Raise DataError if it cannot be read.
    """
    kind = file_format(file)
    packed = file.suffix.lower() == ".gz"
    if kind not in FORMATS and not file.is_dir():
        shown = f"{kind}{'.gz' if packed else ''}" or "no suffix"
        raise DataError(f"{file}: cannot tell the format from {shown}; known: {', '.join(FORMATS)}")
    raw, encoding = to_utf8(_read(file, budget), str(file))
    notes = [] if encoding == "utf-8" else [f"read as {encoding}, told from its bytes"]
    found = SourceFormat(path=str(file), encoding=encoding)
    if kind in _SEPARATORS:
        stream = io.BufferedReader(io.BytesIO(raw), _SAMPLE_BYTES)
        delimiter, (has_header, rows) = csv_rows(stream, _SEPARATORS[kind], columns, answered=answered)
        found = found.model_copy(update={"delimiter": delimiter, "has_header": has_header})
        more = [f"its fields are separated by {_NAMES[delimiter]}"] * (delimiter != _SEPARATORS[kind])
        more += [NO_HEADER] * (not has_header)
    elif is_list(raw):
        more, rows = ["read as one JSON list"], list_rows(raw, partial(_object, unit="item"))
    else:
        more, rows = [], json_rows(io.BytesIO(raw))
    budget.formats.append(found.model_copy(update={"notes": (*notes, *more)}))
    return _counted(str(file), rows, budget)


def csv_rows(
    stream: io.BufferedReader[Any], usual: str, columns: Columns | None = None, *, answered: bool = False
) -> tuple[str, TableRows]:
    """Return what separates the fields of UTF-8 CSV, told from its beginning, else `usual`, and its rows."""
    sample = stream.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES]
    lines = (sample[: sample.rfind(b"\n") + 1] or sample).decode("utf-8-sig", errors="replace")
    delimiter = detect_delimiter(lines, usual, columns, answered=answered)
    return delimiter, table_rows(_csv_records(_lines(stream), delimiter), columns, answered=answered)


def _counted(path: str, rows: Iterator[NumberedRow], budget: ReadBudget) -> Iterator[RawRow]:
    for line, values in rows:
        budget.take(0, 1)
        yield RawRow(path, line, values)


def file_format(file: Path) -> str:
    """Return the suffix that tells the format, in lower case: the one before `.gz`, if there is one."""
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() if suffix == ".gz" else suffix


def _read(file: Path, budget: ReadBudget) -> bytes:
    try:
        return _unpacked(file, budget) if file.suffix.lower() == ".gz" else file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: no such file", hint=suggest_files(file.parent, file.name)) from None
    except IsADirectoryError:
        raise DataError(f"{file}: a folder, not a file", hint=suggest_files(file, "")) from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{file}: broken gzip: {error}", hint=f"gzip -t {file}   then make or fetch it again") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None


def _unpacked(file: Path, budget: ReadBudget) -> bytes:
    """Return the content of a gzip file. Raise DataError once it exceeds the budget, as a few kilobytes may."""
    whole = bytearray()
    with gzip.open(file) as packed:
        while piece := packed.read(_PIECE_BYTES):
            budget.take(len(piece))
            whole += piece
    return bytes(whole)


def suggest_files(folder: Path, name: str) -> str:
    """Return a hint at the files that the user may have meant: similar names, or else what there is."""
    if not folder.is_dir():
        return f"make the folder {folder}, or check its name"
    there = sorted(p.name for p in folder.iterdir() if file_format(p) in (*FORMATS, ".parquet"))
    near = difflib.get_close_matches(name, there, n=3)
    if near:
        return "did you mean " + " or ".join(str(folder / n) for n in near) + "?"
    return f"{folder} holds " + (", ".join(there[:10]) or "no file of rows")


def _lines(stream: Iterable[bytes]) -> Iterator[_Line]:
    """Yield the physical lines, each with the place of its first byte that is not UTF-8."""
    offset = 0
    for line in stream:
        begin = 0 if offset or not line.startswith(codecs.BOM_UTF8) else len(codecs.BOM_UTF8)
        piece, rule = line[begin:].removesuffix(b"\n"), None
        try:
            text = piece.decode()
        except UnicodeDecodeError as error:
            text, at = piece.decode(errors="replace"), error.start
            rule = f"not UTF-8: byte 0x{piece[at]:02x} at offset {offset + begin + at:,} of the file"
        yield _Line(text, len(piece), rule)
        offset += len(line)


def json_rows(stream: Iterable[bytes]) -> Iterator[NumberedRow]:
    """Yield the objects of JSON Lines, each by its line, or the rule that the line breaks."""
    for number, line in enumerate(_lines(stream), start=1):
        if rule := line.rule or row_size_rule(line.n_bytes):
            yield number, rule
        elif line.text.strip(_BLANK):
            yield number, _object(line.text)


def is_list(raw: bytes) -> bool:
    """Return True if UTF-8 content begins as a list of objects, or is an empty list."""
    head = raw[:MAX_ROW_BYTES].lstrip(codecs.BOM_UTF8).lstrip()
    return head.startswith(b"[") and head[1:].lstrip()[:1] in (b"{", b"]")


def list_rows(raw: bytes, parse: Callable[[str], dict[str, Any] | str]) -> Iterator[NumberedRow]:
    """Yield the parsed items of a list by the lines on which they begin; the first that is broken is the last."""
    text, damage = _decoded(raw)
    at, line = 0, 1

    def move(end: int) -> None:
        nonlocal at, line
        at, line = end, line + text.count("\n", at, end)

    def following() -> str:
        found = _SPACE.match(text, at)
        move(found.end() if found else at)
        return text[at : at + 1]

    def take(character: str) -> None:
        if following() != character:
            raise json.JSONDecodeError(f"Expecting '{character}'", text, at)
        move(at + 1)

    try:
        take("[")
        while following() != "]":
            begin, first_line = at, line
            move(_end_of_value(text, at))
            yield first_line, row_size_rule(at - begin) or parse(text[begin:at])
            if following() != "]":
                take(",")
        take("]")
        if following():
            yield line, "broken JSON: something follows the list"
    except json.JSONDecodeError as error:
        yield (line, damage) if damage else (line + text.count("\n", at, error.pos), f"broken JSON: {error.msg}")
    except RecursionError:
        yield line, "broken JSON: nested too deeply"


def _decoded(raw: bytes) -> tuple[str, str]:
    """Return the text up to the first byte that is not UTF-8, and what is wrong with that byte, if there is one."""
    try:
        return raw.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        damaged = f"after this line not UTF-8: byte 0x{error.object[error.start]:02x}"
        return error.object[: error.start].decode(), damaged


def _end_of_value(text: str, at: int) -> int:
    """Return where the value at `at` ends, within twice MAX_ROW_BYTES. Raise JSONDecodeError, RecursionError."""
    size = _FIRST_CHARACTERS
    while True:
        try:
            return at + _DECODER.raw_decode(text[at : at + size])[1]
        except json.JSONDecodeError as error:
            if at + size >= len(text) or size > 2 * MAX_ROW_BYTES:
                raise json.JSONDecodeError(error.msg, text, at + error.pos) from None
            size *= 8


def _object(text: str, unit: str = "line") -> dict[str, Any] | str:
    """Return one JSON object, or the rule that the text breaks; `unit` is what each object is in the file."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        return f"broken JSON at column {error.colno}: {error.msg}"
    except RecursionError:
        return "broken JSON: nested too deeply"
    except ValueError as error:  # a key twice, or a number of thousands of digits
        return f"broken JSON: {error}"
    return value if isinstance(value, dict) else f"not a JSON object: each {unit} must be {{…}}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict. Raise ValueError on a repeated key, where json would keep the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f'key "{twice}" twice')
    return values


def _csv_records(lines: Iterable[_Line], separator: str) -> Iterator[TableRecord]:
    """Yield the first physical line of each record, and its fields or the rule it breaks; no blank lines."""
    # csv refuses fields over 128 KiB by a limit of the whole process; raising it hurts no reader.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    rule, n_bytes = None, 0  # of the record that is being read

    def texts() -> Iterator[str]:
        nonlocal rule, n_bytes
        for line in lines:
            rule, n_bytes = rule or line.rule, n_bytes + line.n_bytes
            yield line.text + "\n"

    reader = csv.reader(texts(), delimiter=separator, strict=True)
    while True:
        first, rule, n_bytes = reader.line_num, None, 0
        try:
            fields: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            open_quote = "unexpected end" in str(error)
            fields = f"broken CSV: {'the quote opened here is never closed' if open_quote else error}"
        broken = rule or row_size_rule(n_bytes)
        if broken or fields:
            yield first + 1, broken or fields
