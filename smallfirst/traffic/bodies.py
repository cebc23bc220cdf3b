"""Bodies of requests and responses as they may be kept: without personal data, images, audio and vectors.

Constant text of a prompt is redacted like the case in it, so a live prompt is compared with a template that was learnt
from kept prompts only after `kept_body`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from smallfirst.data.redaction import redact

_MEDIA = re.compile(r"(?:data:[\w/+.;=\-]*,)?[A-Za-z0-9+/_\-\r\n]{1000,}={0,2}")
"""Base64, with or without the head of a data URL; words have spaces."""
_MOST_NUMBERS = 64
_CACHED_CHARACTERS = 20_000


def kept_body(body: Any) -> Any:
    """Return a body as JSON values with placeholders: `[EMAIL]` in texts, `[5,000 characters of data]` for media.

    Keys and numbers stay as they are; what is no Unicode becomes `?`. A second pass changes nothing.
    """
    if isinstance(body, str):
        return _redacted(body) if len(body) <= _CACHED_CHARACTERS else _kept_text(body)
    if isinstance(body, dict):
        return {key: kept_body(value) for key, value in body.items()}
    if isinstance(body, list):
        if len(body) > _MOST_NUMBERS and all(isinstance(item, float) for item in body):
            return f"[{len(body):,} numbers]"
        return [kept_body(item) for item in body]
    return body


def _kept_text(text: str) -> str:
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair, which JSON can hold, is no text
    if len(text) >= 1000 and _MEDIA.fullmatch(text):
        return f"[{len(text):,} characters of data]"
    return redact(text).text


_redacted = lru_cache(maxsize=2048)(_kept_text)  # instructions repeat with every request
