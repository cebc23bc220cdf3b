"""Bodies of requests and responses as they may be kept: without personal data, images, audio and vectors.

Constant text of a prompt is redacted like the case in it, so a live prompt is compared with a template that was learnt
from kept prompts only after `kept_body`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from smallfirst.data.detectors.labelled import labelled_kind
from smallfirst.data.redaction import NAMES, redact

_MEDIA = re.compile(r"(?:data:[\w/+.;=\-]*,)?[A-Za-z0-9+/_\-\r\n]{1000,}={0,2}")
"""Base64, with or without the head of a data URL; words have spaces."""
_MOST_NUMBERS = 64
_FEWEST_TOLD = 10**8
"""A smaller number is told by its name alone: `{"pin": 4821}`."""
_CACHED_CHARACTERS = 20_000


def kept_body(body: Any, label: str = "") -> Any:
    """Return a body as JSON values with placeholders: `[EMAIL]` in texts, `[5,000 characters of data]` for media.

    Keys are redacted as values are, by the name under which they stand (`label`); a whole number that is a find becomes
    text, and what is no Unicode `?`. A second pass changes nothing.
    """
    if isinstance(body, str):
        return _redacted(body, label) if len(body) <= _CACHED_CHARACTERS else _kept_text(body, label)
    if isinstance(body, dict):
        named = next((body[name] for name in NAMES if isinstance(body.get(name), str)), "value")
        items = {_redacted(k, ""): kept_body(value, named if k == "value" else k) for k, value in body.items()}
        return items if len(items) == len(body) else _numbered(body, named)
    if isinstance(body, list):
        if len(body) > _MOST_NUMBERS and all(isinstance(item, float) for item in body):
            return f"[{len(body):,} numbers]"
        return [kept_body(item, label) for item in body]
    if isinstance(body, int) and not isinstance(body, bool) and (abs(body) >= _FEWEST_TOLD or labelled_kind(label)):
        text = str(body)
        kept = _redacted(text, label)
        return body if kept == text else kept
    return body


def _numbered(body: dict[str, Any], named: str) -> dict[str, Any]:
    """Return the body where keys have become equal, which had another secret each: the later ones are numbered."""
    kept: dict[str, Any] = {}
    for key, value in body.items():
        first = name = _redacted(key, "")
        n = 1
        while name in kept:
            n += 1
            name = f"{first} {n}"
        kept[name] = kept_body(value, named if key == "value" else key)
    return kept


def _kept_text(text: str, label: str) -> str:
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair, which JSON can hold, is no text
    if len(text) >= 1000 and _MEDIA.fullmatch(text):
        return f"[{len(text):,} characters of data]"
    return redact(text, label if labelled_kind(label) else "").text


_redacted = lru_cache(maxsize=2048)(_kept_text)  # instructions repeat with every request
