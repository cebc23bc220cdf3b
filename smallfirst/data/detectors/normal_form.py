"""The form in which texts are searched, with a map back to the text as it was written."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_ESCAPE = re.compile(
    r"(?<!\\)\\++(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[nrt\"'/])"  # of JSON, Python and JavaScript, also escaped twice
    r"|%(?:40|2[bBfF]|3[aAdD])"  # @ + / : = in an address
    r"|&(?:\#[0-9]{2,5}|\#[xX][0-9a-fA-F]{2,4}|commat|amp|quot|period|lt|gt);"
)
_SIGNS = ("\\", "%4", "%2", "%3", "&")
_ASCII = frozenset(map(chr, range(128)))
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}
_DROPPED = {0xAD, 0x034F, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF}
"""Characters that nobody sees: soft hyphens, joiners, marks of direction."""


class NormalForm(NamedTuple):
    """A text with figures of any script as 0 to 9, NFKC's characters, plain dashes, and escapes undone."""

    text: str
    starts: Sequence[int] = ()
    """For each character, where what it stands for begins in the original, and at last its length; empty: the same."""

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the span of the original that a span stands for."""
        return (self.starts[start], self.starts[end]) if self.starts else (start, end)


def normal_form(text: str) -> NormalForm:
    """Return the form in which a text is searched; linear in its length."""
    escaped = any(sign in text for sign in _SIGNS) and _ESCAPE.search(text)
    changed = {} if text.isascii() else {c: plain for c in set(text) - _ASCII if (plain := _plain(c)) != c}
    if not escaped and all(len(plain) == 1 for plain in changed.values()):
        return NormalForm(text.translate({ord(c): plain for c, plain in changed.items()}) if changed else text)
    parts: list[str] = []
    starts: list[int] = []
    done = 0

    def take(piece: str, start: int, width: int) -> None:
        """Append what each character stands for; an escape's characters begin where it begins."""
        for i, character in enumerate(piece):
            plain = _plain(character)
            parts.append(plain)
            starts.extend([start + i * width] * len(plain))

    for match in _ESCAPE.finditer(text) if escaped else ():
        take(text[done : match.start()], done, 1)
        take(_unescaped(match.group()), match.start(), 0)
        done = match.end()
    take(text[done:], done, 1)
    return NormalForm("".join(parts), (*starts, len(text)))


def _unescaped(escape: str) -> str:
    if escape[0] == "&":
        return "." if escape == "&period;" else html.unescape(escape)
    if escape[0] == "%":
        return chr(int(escape[1:], 16))
    name = escape.lstrip("\\")
    return chr(int(name[1:], 16)) if name[0] in "ux" else _LETTERS.get(name, name)


@lru_cache(maxsize=8192)
def _plain(character: str) -> str:
    if character < "\x80":
        return character
    if ord(character) in _DROPPED:
        return ""
    figure = unicodedata.decimal(character, None)
    if figure is not None:
        return str(figure)
    kind = unicodedata.category(character)
    if kind == "Pd" or character == "\u2212":
        return "-"
    return " " if kind == "Zs" else unicodedata.normalize("NFKC", character)
