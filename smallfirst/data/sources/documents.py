"""Documents as rows: the text of files of several formats, pages apart, or the rule that a file breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from smallfirst.base.errors import MissingExtra
from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.document_text import MAX_TEXT_BYTES, READERS
from smallfirst.data.sources.text_files import RawRow, to_utf8

PLAIN = (".txt", ".md")
DOCUMENTS = (*READERS, *PLAIN)
"""Suffixes of the files that are read."""
MAX_FILE_BYTES = 50_000_000
_KEPT_VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""Of the environment; the program that reads gets no keys."""


class ReadDocument(NamedTuple):
    """The text of a document, or why there is none."""

    text: str = ""
    rule: str = ""


class DocumentReader:
    """Reads documents one after another; the program that does so starts with the first that needs it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> DocumentReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.communicate()

    def read_file(self, path: Path, folder: Path) -> ReadDocument:
        """Return the text of a file below `folder`. Raise MissingExtra."""
        try:
            if not path.resolve().is_relative_to(folder.resolve()):
                return ReadDocument(rule=f"leads out of {folder}; put the file itself there")
            if not path.is_file():
                return ReadDocument(rule=f"no such file in {folder}")
            if (n_bytes := path.stat().st_size) > MAX_FILE_BYTES:
                return ReadDocument(rule=f"file of {n_bytes:,} bytes; at most {MAX_FILE_BYTES:,} are read: split it")
            return self.read(path.name, path.read_bytes())
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL character
            return ReadDocument(rule=f"cannot be read: {getattr(error, 'strerror', None) or error}")

    def read(self, name: str, raw: bytes) -> ReadDocument:
        """Return the text of a document whose name tells its format. Raise MissingExtra."""
        suffix = os.path.splitext(name)[1].lower()
        if suffix in PLAIN:
            try:
                text = to_utf8(raw, name)[0].decode("utf-8-sig")
            except ValueError as error:
                return ReadDocument(rule=str(error).splitlines()[0])
            if len(raw) > MAX_TEXT_BYTES:
                return ReadDocument(rule=f"{len(raw):,} bytes of text; at most {MAX_TEXT_BYTES:,} are read: split it")
            return ReadDocument(text) if text.strip() else ReadDocument(rule="there is no text in it")
        if suffix not in READERS:
            return ReadDocument(rule=f"no format that is read: {', '.join(DOCUMENTS)}")
        with self._lock:
            child = self._started()
            assert child.stdin
            assert child.stdout
            child.stdin.write(f"{suffix} {len(raw)}\n".encode() + raw)
            child.stdin.flush()
            said = child.stdout.readline()
        return ReadDocument(**json.loads(said)) if said else ReadDocument(rule="the program that reads has ended")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            if not all(map(find_spec, ("pypdfium2", "lxml"))):
                raise MissingExtra("reading documents", "documents")
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "smallfirst.data.sources.document_text"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            )
        return self._child


def with_documents(rows: Iterable[RawRow], columns: Columns, folder: Path | None) -> Iterator[RawRow]:
    """Yield the rows with the texts of the documents that the column `columns.file` names.

    Names are relative to `folder`, or to the folder of the rows' file. A row that has a text too breaks a rule.
    """
    with DocumentReader() as reader:
        for row in rows:
            if isinstance(row.values, str) or columns.file not in row.values:
                missing = f'no column "{columns.file}", which columns.file names'
                yield row if isinstance(row.values, str) else row._replace(values=missing)
                continue
            values = dict(row.values)
            name, base = str(values.pop(columns.file) or ""), folder or Path(row.path).parent
            if values.pop(columns.text, None) not in (None, ""):
                rule = f'{name}: has a text in "{columns.text}" beside its document; leave out one of them'
                yield row._replace(values=rule)
                continue
            found = reader.read_file(base / name, base)
            yield row._replace(values=f"{name}: {found.rule}" if found.rule else {columns.text: found.text, **values})
