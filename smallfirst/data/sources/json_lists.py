"""Rows of one JSON list of objects, read piece by piece."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any

from smallfirst.data.sources.reader import MAX_ROW_BYTES, NumberedRow, row_size_rule

_PIECE_BYTES = MAX_ROW_BYTES
_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder()


def is_list(raw: bytes) -> bool:
    """Return True if UTF-8 content begins as a list of objects, or is an empty list."""
    head = raw[:_PIECE_BYTES].lstrip(codecs.BOM_UTF8).lstrip()
    return head.startswith(b"[") and head[1:].lstrip()[:1] in (b"{", b"]")


def list_rows(raw: bytes, parse: Callable[[str], dict[str, Any] | str]) -> Iterator[NumberedRow]:
    """Yield the parsed items of a list by the lines on which they begin; the first that is broken is the last."""
    window = _Window(raw)
    try:
        window.take("[")
        while window.next() != "]":
            line, text = window.line, window.value()
            yield line, row_size_rule(len(text)) or parse(text)
            if window.next() != "]":
                window.take(",")
        window.take("]")
        if window.next():
            yield window.line, "broken JSON: something follows the list"
    except json.JSONDecodeError as error:
        yield window.line + error.doc.count("\n", window.at, error.pos), f"broken JSON: {error.msg}"
    except RecursionError:
        yield window.line, "broken JSON: nested too deeply"
    except UnicodeDecodeError as error:
        yield window.line, f"after this line not UTF-8: byte 0x{error.object[error.start]:02x}"


class _Window:
    """The part of a JSON text that is being read."""

    def __init__(self, raw: bytes) -> None:
        self.line = 1
        self.text = ""
        self.at = 0
        self._raw, self._read = raw, len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def next(self) -> str:
        """Return the next character that is no space, without taking it; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self._pass(self.at + 1)
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def take(self, character: str) -> None:
        """Pass over this character. Raise JSONDecodeError if another one is next."""
        if self.next() != character:
            raise json.JSONDecodeError(f"Expecting '{character}'", self.text, self.at)
        self._pass(self.at + 1)

    def value(self) -> str:
        """Return the text of the next value. Raise JSONDecodeError if it is broken, RecursionError."""
        while True:
            try:
                _, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or not self._more():
                    break
            except json.JSONDecodeError:
                if len(self.text) - self.at > 2 * MAX_ROW_BYTES or not self._more():
                    raise
        text = self.text[self.at : end]
        self._pass(end)
        return text

    def _pass(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def _more(self) -> bool:
        if self._read >= len(self._raw):
            return False
        piece = self._raw[self._read : self._read + _PIECE_BYTES]
        self._read += len(piece)
        self.text = self.text[self.at :] + self._decoder.decode(piece, final=self._read >= len(self._raw))
        self.at = 0
        return True
