"""The model that a request names, and its place in the body: a mapped name changes these bytes alone."""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import NamedTuple

_SPACE = re.compile(r"[ \t\n\r]*")
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_FORM_FIELD = re.compile(rb'name="?model"?[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n--', re.IGNORECASE)


class NamedModel(NamedTuple):
    """A model's name and where it stands in a body."""

    name: str
    start: int
    """First byte of the value, quotes included in JSON."""
    end: int


def find_model(content_type: bytes, body: bytes) -> NamedModel | None:
    """Return the model that a JSON or multipart body names at its top level; None if there is none."""
    if content_type[:19].lower() == b"multipart/form-data":
        found = _FORM_FIELD.search(body)
        return NamedModel(found[1].decode("utf-8", "replace"), found.start(1), found.end(1)) if found else None
    try:
        return _in_json(body.decode())
    except (ValueError, StopIteration, RecursionError, IndexError):
        return None


def with_model(content_type: bytes, body: bytes, model: NamedModel, name: str) -> bytes:
    """Return `body` with another name in the place of `model`, all other bytes as they were."""
    form = content_type[:19].lower() == b"multipart/form-data"
    return body[: model.start] + (name if form else json.dumps(name)).encode() + body[model.end :]


def _in_json(text: str) -> NamedModel | None:
    """Walk over the members of the top-level object; of several `model`s the last counts, as for JSON parsers."""
    at, found = _next(text, 0), None
    if text[at] != "{":
        return None
    at = _next(text, at + 1)
    while text[at] == '"':
        key, at = scanstring(text, at + 1)
        at = _next(text, at)
        if text[at] != ":":
            return None
        start = _next(text, at + 1)
        value, at = _scan(text, start)
        if key == "model":
            found = (value, start, at)
        at = _next(text, at)
        if text[at] != ",":
            break
        at = _next(text, at + 1)
    if found is None or not isinstance(found[0], str):
        return None
    if text.isascii():
        return NamedModel(*found)
    before = len(text[: found[1]].encode())
    return NamedModel(found[0], before, before + len(text[found[1] : found[2]].encode()))


def _next(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]
