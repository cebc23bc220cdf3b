"""Read rows in bulk, one after the other: Parquet, JSON Lines and CSV, also gzipped, in folders and object stores.

Nothing is held but the row at hand, so there may be any number. Other sources are read as `data.sources` reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.base.errors import DataError, did_you_mean
from smallfirst.base.records import fingerprint
from smallfirst.data.row_formats import Columns, message_rules, text_rules
from smallfirst.data.sources.arrow import BATCH_ROWS, DELTA_LOG, PARQUET, batch_rows
from smallfirst.data.sources.folders import list_files
from smallfirst.data.sources.load import load_raw
from smallfirst.data.sources.text_files import NumberedRow, ReadBudget, csv_rows, file_format, first_line, json_rows

_JSON_LINES, _TABLES = (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t"}
_HIDDEN = re.compile(r"/[._]")
_STREAMED = (PARQUET, *_JSON_LINES, *_TABLES)


class BatchRow(NamedTuple):
    """A row to be answered."""

    number: int
    """Of the source, from 1."""
    kept: tuple[Any, ...]
    """The values of the columns that stay beside the answer."""
    request: str
    """The request as JSON: `{"messages": …, "tags": …}`; empty if the row makes none."""
    rule: str
    """The rule that the row breaks."""


class RowSource:
    """The files of an address, read in order."""

    def __init__(self, address: str, *, columns: Columns, text: str = "", keep: tuple[str, ...] = ()) -> None:
        """Find the files; `text` names the column that is asked, in place of the usual ones. Raise DataError."""
        self.address, self.columns, self.keep = address, columns, keep
        self._asked = (text,) if text else (columns.text, columns.question, columns.prompt)
        import pyarrow
        from pyarrow import fs

        try:
            local = fs.LocalFileSystem(), str(Path(address).absolute())
            self._files, path = fs.FileSystem.from_uri(address) if "://" in address else local
            files = listed = [self._files.get_file_info(path)]
            if files[0].type == fs.FileType.Directory:
                if isinstance(self._files, fs.LocalFileSystem):
                    for file, rule in list_files(Path(path)):
                        if rule:
                            raise DataError(f"{file}: {rule}", hint="or name the file or folder that it leads to")
                listed = self._files.get_file_info(fs.FileSelector(path, recursive=True))
                files = [one for one in listed if not _HIDDEN.search(one.path[len(path) :])]
            is_delta = any(one.base_name == DELTA_LOG for one in listed)  # its old files are still there
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{address}: {first_line(error)}") from None
        self._infos = sorted((one for one in files if one.is_file), key=lambda one: one.path)
        known = all(file_format(Path(one.path)) in _STREAMED for one in self._infos)
        self._streamed = bool(self._infos) and known and not is_delta

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the names, sizes and times of the files: another one means other rows."""
        return fingerprint([[one.path, one.size, one.mtime_ns] for one in self._infos] or self.address)

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the first row; empty without one."""
        first = next(iter(self._rows()), "")
        return () if isinstance(first, str) else tuple(first)

    def __iter__(self) -> Iterator[BatchRow]:
        for number, values in enumerate(self._rows(), start=1):
            if isinstance(values, str):
                yield BatchRow(number, (None,) * len(self.keep), "", values)
                continue
            if number == 1 and (lost := [name for name in self.keep if name not in values]):
                raise DataError(f"{self.address}: no column {lost[0]!r} to keep{did_you_mean(lost[0], values)}")
            request = self._request(values)
            kept = tuple(values.get(name) for name in self.keep)
            yield BatchRow(number, kept, *((request, "") if request.startswith("{") else ("", request)))

    def _rows(self) -> Iterator[Mapping[str, Any] | str]:
        if not self._streamed:  # which says what is wrong with the address
            yield from (row.values for row in load_raw(self.address)[0])
            return
        for one in self._infos:
            for line, values in self._file_rows(one.path):
                yield f"{one.path}:{line} {values}" if isinstance(values, str) else values

    def _file_rows(self, path: str) -> Iterator[NumberedRow]:
        import pyarrow.parquet

        kind = file_format(Path(path))
        try:
            if kind == PARQUET:
                with pyarrow.parquet.ParquetFile(self._files.open_input_file(path)) as file:
                    budget = ReadBudget(path, sys.maxsize)
                    budget.n_bytes = sys.maxsize
                    yield from batch_rows(file.iter_batches(BATCH_ROWS), file.schema_arrow.names, budget)
                return
            with io.BufferedReader(self._files.open_input_stream(path), 1 << 20) as lines:
                yield from csv_rows(lines, _TABLES[kind])[1] if kind in _TABLES else json_rows(lines)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not readable: {first_line(error)}") from None

    def _request(self, values: Mapping[str, Any]) -> str:
        """Return the request of a row as JSON, or the rule that the row breaks, which never begins with a brace."""
        columns = self.columns
        messages = values.get(columns.messages)
        if messages is not None:
            asked = messages if isinstance(messages, list) else [messages]
            answered = bool(asked) and isinstance(asked[-1], dict) and asked[-1].get("role") == "assistant"
            asked = asked[:-1] if answered else asked
            rules = message_rules([*asked, {"role": "assistant", "content": "-"}], columns.messages)
        else:
            column = next((name for name in self._asked if name in values), "")
            if not column:
                return f"no column {' or '.join(map(repr, dict.fromkeys(self._asked)))}; the row has {[*values][:20]}"
            rules = text_rules(values[column], f'"{column}"')
            context = values.get(columns.context) or ""
            context = ", ".join(map(str, context)) if isinstance(context, list) else str(context)
            text = f"{context.strip()}\n\n{values[column]}" if context.strip() else values[column]
            asked = [{"role": "user", "content": text}]
        if rules:
            return rules[0]
        tags = {name: " ".join(str(values[name]).split()) for name in columns.tags if values.get(name) is not None}
        return json.dumps({"messages": asked, **({"tags": tags} if tags else {})}, ensure_ascii=False)


def request_hash(request: str) -> str:
    """Return 32 hex digits by which equal requests are found."""
    return hashlib.blake2b(request.encode(), digest_size=16).hexdigest()
