"""Rows of JSON Lines, JSON lists and CSV, each line as values by column or as the rule that it breaks.

Encoding and separator are told from the content. The first line of a table names its columns.
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
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from smallfirst.base.errors import DataError
from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.data.row_formats import Columns, detect_layout

# What every reader of rows yields, and how much of one source may be read

MAX_ROW_BYTES = 1_000_000
"""A longer row is refused: it is not a row of a narrow task but a file that lost its line ends."""
MAX_SOURCE_BYTES = 2_000_000_000
MAX_DOCUMENT_BYTES = 500_000_000
"""Of one JSON document that is read as a whole: as objects it takes some ten times as much memory."""
MAX_SOURCE_ROWS = 10_000_000
"""No more is read of one source: its rows must fit into memory, and a small packed file may claim any size."""

_REPORTED = 2048
NumberedRow = tuple[int, dict[str, Any] | str]
"""Line or row number from 1, and the values by column or the rule that the row breaks."""


class RawRow(NamedTuple):
    """One row as it stands in its source."""

    path: str
    line: int
    """Line, or number of the row, from 1."""
    values: dict[str, Any] | str
    """Values by column, or the rule that the row breaks."""


def first_line(error: Exception) -> str:
    """Return the first line of what a library says, at most 300 characters; the type of an error without words."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def row_size_rule(n_bytes: int) -> str | None:
    """Return the rule that a row of that size breaks; None if it may be read."""
    return None if n_bytes <= MAX_ROW_BYTES else f"row of {n_bytes:,} bytes; at most {MAX_ROW_BYTES:,} are read"


class ReadBudget:
    """How much of one source may still be read, and what was found out about how it is written."""

    def __init__(self, where: str, max_rows: int | None = None, progress: ProgressCallback = no_progress) -> None:
        """`progress` is called with the rows that were read, and how many there are, as far as that is known."""
        self.where, self.progress, self.n_expected = where, progress, 0
        self.notes: dict[str, list[str]] = {}
        """Paths by note, such as "read as cp1252, told from its bytes"."""
        self.n_bytes = MAX_SOURCE_BYTES
        self.n_rows = self.max_rows = MAX_SOURCE_ROWS if max_rows is None else max_rows

    def note(self, path: str, *notes: str) -> None:
        for note in notes:
            self.notes.setdefault(note, []).append(path)

    def claim(self, n_bytes: int, n_rows: int = 0) -> None:
        """Raise DataError if the source would be too large with so much more."""
        for left, more, limit, what in (
            (self.n_bytes, n_bytes, MAX_SOURCE_BYTES, "bytes"),
            (self.n_rows, n_rows, self.max_rows, "rows"),
        ):
            if more > left:
                raise DataError(
                    f"{self.where}: more than {limit:,} {what}; no more are read of one source",
                    hint="a narrow task needs no more: draw a random part of the rows",
                )

    def take(self, n_bytes: int, n_rows: int = 0) -> None:
        """Count so much as read. Raise DataError if that is too much."""
        self.n_bytes -= n_bytes
        self.n_rows -= n_rows
        if self.n_bytes < 0 or self.n_rows < 0:
            self.claim(0)
        n_read = self.max_rows - self.n_rows
        if n_read % _REPORTED < n_rows:
            self.progress(n_read, max(n_read, self.n_expected))


# The files

_JSON = (".jsonl", ".ndjson", ".json")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*_JSON, *_SEPARATORS)
"""Suffixes of the files that are read; each may have `.gz` after it."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_PIECE_BYTES, _SAMPLE_BYTES = 1 << 20, 1 << 16
_BLANK = " \t\r"  # not str.strip(): U+2028 and its like are text, not blank


def read_text_file(
    file: Path, columns: Columns | None, budget: ReadBudget, *, answered: bool = False
) -> Iterator[RawRow]:
    """Yield the rows of a file with a suffix of FORMATS, perhaps gzipped; without `columns` any names will do.

    Raise DataError if it cannot be read.
    """
    kind = file_format(file)
    if kind not in FORMATS and file.is_file():
        raise DataError(
            f"{file}: cannot tell the format from {file.suffix or 'no suffix'}; known: {', '.join(FORMATS)}",
            hint="rename it to what it holds",
        )
    raw, encoding = to_utf8(_read(file, budget), str(file))
    notes = [] if encoding == "utf-8" else [f"read as {encoding}, told from its bytes"]
    if kind in _SEPARATORS:
        stream = io.BufferedReader(io.BytesIO(raw), _SAMPLE_BYTES)
        delimiter, rows = csv_rows(stream, _SEPARATORS[kind], columns, answered=answered)
        notes += [f"its fields are separated by {DELIMITERS[delimiter]}"] * (delimiter != _SEPARATORS[kind])
    elif is_list(raw):
        notes, rows = [*notes, "read as one JSON list"], list_rows(raw)
    else:
        rows = json_rows(io.BytesIO(raw))
    budget.note(str(file), *notes)
    budget.n_expected += raw.count(b"\n")
    return _counted(str(file), rows, budget)


def _counted(path: str, rows: Iterable[NumberedRow], budget: ReadBudget) -> Iterator[RawRow]:
    for line, values in rows:
        budget.take(0, 1)
        yield RawRow(path, line, values)


# The file


def file_format(file: Path) -> str:
    """Return the suffix that tells the format, in lower case: the one before `.gz`, if there is one."""
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() if suffix == ".gz" else suffix


def suggest_files(folder: Path, name: str) -> str:
    """Return a hint at the files that the user may have meant: similar names, or else what there is."""
    if not folder.is_dir():
        return f"make the folder {folder}, or check its name"
    there = sorted(p.name for p in folder.iterdir() if file_format(p) in (*FORMATS, ".parquet", ".xlsx"))
    near = difflib.get_close_matches(name, there, n=3)
    if near:
        return "did you mean " + " or ".join(str(folder / n) for n in near) + "?"
    return f"{folder} holds " + (", ".join(there[:10]) or "no file of rows")


def _read(file: Path, budget: ReadBudget) -> bytes:
    """Return the content. Raise DataError if it cannot be read, or unpacks to more than the budget."""
    try:
        if file.suffix.lower() != ".gz":
            budget.take(file.stat().st_size)
            return file.read_bytes()
        whole = bytearray()
        with gzip.open(file) as packed:
            while piece := packed.read(_PIECE_BYTES):
                budget.take(len(piece))
                whole += piece
        return bytes(whole)
    except (FileNotFoundError, IsADirectoryError) as error:
        is_folder = isinstance(error, IsADirectoryError)
        hint = suggest_files(file, "") if is_folder else suggest_files(file.parent, file.name)
        raise DataError(f"{file}: {'a folder, not a file' if is_folder else 'no such file'}", hint=hint) from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{file}: broken gzip: {error}", hint=f"gzip -t {file}   then make or fetch it again") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None


# Its encoding

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # begins as that of UTF-16 does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LEGACY = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"),
    *("cp932", "gb18030", "big5", "euc_kr", "euc_jp"),
)
_HIGH = re.compile(rb"[\x80-\xff]")
_WELL_FORMED = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH_LINE = re.compile(rb"[^\n]*[\x80-\xff][^\n]*\n?")


def to_utf8(raw: bytes, where: str) -> tuple[bytes, str]:
    """Return the content as UTF-8 and the name of its encoding. Raise DataError if it cannot be told or is broken.

    UTF-8 with some damaged bytes stays as it is, with its byte order mark, so that the lines at fault can be named.
    """
    encoding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "")
    encoding = encoding or ("utf-8" if _is_utf8(raw) else _legacy(raw))
    hint = f"iconv -f ENCODING -t UTF-8 {where} > utf8-rows   with the encoding that wrote it"
    if not encoding:
        raise DataError(f"{where}: neither UTF-8 nor any other encoding that can be told", hint=hint)
    if encoding == "utf-8":
        return raw, encoding
    try:
        return raw.decode(encoding).encode(), encoding
    except UnicodeError as error:
        raise DataError(f"{where}: neither UTF-8 nor whole {encoding}: {error.args[-1]}", hint=hint) from None


def _is_utf8(raw: bytes) -> bool:
    """Return True for UTF-8, also if a smaller part of its characters beyond ASCII is damaged."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        n_formed = sum(1 for _ in _WELL_FORMED.finditer(raw))
        n_damaged = sum(1 for _ in _HIGH.finditer(_WELL_FORMED.sub(b"", raw)))
        return n_formed >= max(1, n_damaged)
    return True


def _legacy(raw: bytes) -> str:
    """Return the most likely encoding of before Unicode, judged by the first lines that are not ASCII; empty: none."""
    import charset_normalizer  # only here: most files are UTF-8

    sample = b"".join(line.group()[:_SAMPLE_BYTES] for line in islice(_HIGH_LINE.finditer(raw), 1000))[:_SAMPLE_BYTES]
    found = charset_normalizer.from_bytes(sample, cp_isolation=list(_LEGACY))
    best = found.best()
    if best is None:
        return ""
    same = [name for match in found if match.chaos <= best.chaos for name in match.could_be_from_charset]
    return "cp1252" if "cp1252" in same else str(best.encoding)


# JSON


class _TextLine(NamedTuple):
    """One physical line, split on the line feed only."""

    text: str
    n_bytes: int
    rule: str | None
    """Why its bytes are not text, if they are not."""


def _lines(stream: IO[bytes]) -> Iterator[_TextLine]:
    """Yield the physical lines, each with the place of its first byte that is not UTF-8; one too long without text."""
    offset = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        end, n_bytes = line, len(line)
        while len(end) > MAX_ROW_BYTES and not end.endswith(b"\n"):
            end = stream.readline(MAX_ROW_BYTES + 1)
            n_bytes += len(end)
        n_text_bytes = n_bytes - end.endswith(b"\n")
        piece, rule = b"" if n_text_bytes > MAX_ROW_BYTES else line.removesuffix(b"\n"), None
        try:
            text = piece.decode()
        except UnicodeDecodeError as error:
            text = piece.decode(errors="replace")
            rule = f"not UTF-8: byte 0x{piece[error.start]:02x} at offset {offset + error.start:,} of the file"
        yield _TextLine(text if offset else text.removeprefix("\ufeff"), n_text_bytes, rule)
        offset += n_bytes


def json_rows(stream: IO[bytes]) -> Iterator[NumberedRow]:
    """Yield the objects of JSON Lines, each by its line, or the rule that the line breaks."""
    for number, line in enumerate(_lines(stream), start=1):
        if rule := line.rule or row_size_rule(line.n_bytes):
            yield number, rule
        elif line.text.strip(_BLANK):
            yield number, _object(line.text)


def _object(text: str) -> dict[str, Any] | str:
    """Return one JSON object, or the rule that the line breaks."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return _broken(error)
    return value if isinstance(value, dict) else "not a JSON object: each line must be {…}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict. Raise ValueError on a repeated key, where json would keep the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f'key "{twice}" twice')
    return values


def _broken(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"broken JSON at {line}column {error.colno}: {error.msg}"
    return f"broken JSON: {'nested too deeply' if isinstance(error, RecursionError) else error}"


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_SPACE = re.compile(r"[ \t\r\n]*")


def is_list(raw: bytes) -> bool:
    """Return True if UTF-8 content begins as a list of objects, or is an empty list."""
    head = raw[:MAX_ROW_BYTES].lstrip(codecs.BOM_UTF8).lstrip()
    return head.startswith(b"[") and head[1:].lstrip()[:1] in (b"{", b"]")


def list_rows(raw: bytes) -> Iterator[NumberedRow]:
    """Yield the objects of one JSON list by their number; the first that is broken is the last."""

    def after_space(at: int) -> int:
        found = _SPACE.match(text, at)
        return found.end() if found else at

    number, text = 1, ""
    try:
        text = raw.decode("utf-8-sig")
        at = after_space(text.index("[") + 1)
        while not text.startswith("]", at):
            value, end = _DECODER.raw_decode(text, at)
            is_object = isinstance(value, dict)
            yield (
                number,
                row_size_rule(end - at) or (value if is_object else "not a JSON object: each item must be {…}"),
            )
            at, number = after_space(end), number + 1
            if text.startswith(",", at):
                at = after_space(at + 1)
            elif not text.startswith("]", at):
                raise json.JSONDecodeError("Expecting ','", text, at)
        if text[at + 1 :].strip():
            yield number, "broken JSON: something follows the list"
    except (ValueError, RecursionError) as error:
        yield number, _broken(error)


# Tables

TableRecord = tuple[int, list[str] | str]
"""Line from 1, and the fields of a record or the rule that it breaks."""


def csv_rows(
    stream: io.BufferedReader[Any], usual: str, columns: Columns | None = None, *, answered: bool = False
) -> tuple[str, Iterator[NumberedRow]]:
    """Return what separates the fields of UTF-8 CSV, told from its beginning, else `usual`, and its rows."""
    sample = stream.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES]
    lines = (sample[: sample.rfind(b"\n") + 1] or sample).decode("utf-8-sig", errors="replace")
    delimiter = detect_delimiter(lines, usual, columns, answered=answered)
    return delimiter, table_rows(_csv_records(_lines(stream), delimiter), columns, answered=answered)


def detect_delimiter(sample: str, usual: str, columns: Columns | None, *, answered: bool) -> str:
    """Return what separates the fields in the first lines.

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


def _csv_records(lines: Iterable[_TextLine], separator: str) -> Iterator[TableRecord]:
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
        first, rule, n_bytes = reader.line_num + 1, None, 0
        try:
            fields: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            open_quote = "unexpected end" in str(error)
            fields = f"broken CSV: {'the quote opened here is never closed' if open_quote else error}"
        broken = rule or row_size_rule(n_bytes)
        if broken or fields:
            yield first, broken or fields


def table_rows(records: Iterator[TableRecord], columns: Columns | None, *, answered: bool) -> Iterator[NumberedRow]:
    """Yield the rows by the names of the first line; a header that makes no row format is the only, bad row.

    Without `columns` any header will do.
    """
    for at, head in records:
        if isinstance(head, str):
            yield at, head
            return
        if any(map(str.strip, head)):
            header = _names(head)
            if rule := _header_rule(header, columns, answered=answered):
                yield at, rule
            else:
                yield from (_row(record, header) for record in records)
            return


def _row(record: TableRecord, header: Sequence[str]) -> NumberedRow:
    line, fields = record
    if isinstance(fields, str):
        return line, fields
    while len(fields) > len(header) and not fields[-1].strip():  # Excel writes empty fields to the right
        fields = fields[:-1]
    if not any(map(str.strip, fields)):
        return line, {}
    if len(fields) != len(header):
        return line, f"{len(fields)} fields where the header has {len(header)}"
    return line, dict(zip(header, fields, strict=True))


def _names(head: Sequence[str]) -> list[str]:
    """Return the names of a header; an unnamed column, as pandas writes its index, is called by its place."""
    trimmed = [name.replace("\ufeff", "").strip() for name in head]
    return [name or f"column {i}" for i, name in enumerate(trimmed, start=1)]


def _header_rule(header: Sequence[str], columns: Columns | None, *, answered: bool) -> str:
    if twice := [name for name, n in Counter(header).items() if n > 1]:
        return f'column "{twice[0]}" twice in the header'
    found = "" if columns is None else detect_layout(header, columns, answered=answered)
    return found if isinstance(found, str) else ""
