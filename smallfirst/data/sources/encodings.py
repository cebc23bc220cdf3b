"""The encoding of a text file, told from its bytes. Whatever it is, the bytes are handed on as UTF-8."""

from __future__ import annotations

import codecs
import re

from smallfirst.errors import DataError

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # begins as that of UTF-16 does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_PIECE_BYTES = 1 << 20
_SAMPLE_BYTES = 100_000
_MOST_DAMAGED = 0.05
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
    encoding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "") or _wide(raw)
    encoding = encoding or ("utf-8" if _is_utf8(raw) else _legacy(raw, where))
    if encoding == "utf-8":
        return raw, encoding
    try:
        return raw.decode(encoding).encode(), encoding
    except UnicodeError as error:
        raise DataError(f"{where}: neither UTF-8 nor whole {encoding}: {error.args[-1]}", hint=_hint(where)) from None


def _wide(raw: bytes) -> str:
    """Return UTF-16 without a mark by its zero bytes: every second one of Latin text; empty if it is none."""
    head = raw[:2048]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) < max(8, len(head) / 5) or min(even, odd) > len(head) / 20:
        return ""
    return "utf-16-be" if even > odd else "utf-16-le"


def _is_utf8(raw: bytes) -> bool:
    """Return True for UTF-8, also if a smaller part of its characters beyond ASCII is damaged."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(raw), _PIECE_BYTES):
            decoder.decode(raw[start : start + _PIECE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        n_formed = sum(1 for _ in _WELL_FORMED.finditer(raw))
        n_damaged = sum(1 for _ in _HIGH.finditer(_WELL_FORMED.sub(b"", raw)))
        return n_formed >= max(1, n_damaged)
    return True


def _legacy(raw: bytes, where: str) -> str:
    """Return the most likely encoding of before Unicode, judged by the lines that are not ASCII."""
    import charset_normalizer  # only here: most files are UTF-8

    sample = b""
    for line in _HIGH_LINE.finditer(raw):
        sample += line.group()[:_SAMPLE_BYTES]
        if len(sample) >= _SAMPLE_BYTES:
            break
    found = charset_normalizer.from_bytes(sample, cp_isolation=list(_LEGACY))
    best = found.best()
    if best is None and b"\0" not in raw and sum(1 for _ in _HIGH.finditer(raw)) < _MOST_DAMAGED * len(raw):
        return "latin-1"  # text that went through several encodings: it has a sign for each byte
    if best is None:
        raise DataError(f"{where}: neither UTF-8 nor any other encoding that can be told", hint=_hint(where))
    same = [name for match in found if match.chaos <= best.chaos for name in match.could_be_from_charset]
    return "cp1252" if "cp1252" in same else str(best.encoding)


def _hint(where: str) -> str:
    return f"iconv -f ENCODING -t UTF-8 {where} > utf8-rows   with the encoding that wrote it"
