"""What a column holds, told from its values: free text, a few repeated values, JSON, dates, numbers, ids."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from smallfirst.data.row_folding import is_blank, scalar_text

Content = Literal["empty", "constant", "object", "texts", "date", "number", "id", "few", "free", "short"]
"""`texts`: lists of text · `few`: values that repeat, such as labels · `free`: texts of several words, mostly different
· `short`: text that is neither."""

MOST_CHARACTERS_OF_A_LABEL = 80
_MOSTLY = 0.9
_REPEATED = 0.8
_DATE = re.compile(
    r"\d{4}-\d\d?-\d\d?([T ].*)?|\d{4}/\d\d?/\d\d?.*|\d\d?[./-]\d\d?[./-]\d{2,4}.*|[A-Z][a-z]{2,8} \d\d?, \d{4}.*"
)
_NUMBER = re.compile(r"[-+]?[\d.,]*\d ?%?")
_IDEOGRAM = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Profile(NamedTuple):
    """One column of a table."""

    name: str
    content: Content
    n_distinct: int
    words: float
    """Mean number of words of the values that are not empty."""
    numeric: bool
    """True if the values are numbers."""


def profile_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Profile]:
    """Return what each column of the rows holds, in the order in which they first appear."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _profile(name, [row.get(name) for row in rows]) for name in names}


def count_words(text: str) -> float:
    """Return the number of words; where there are no spaces between words, two characters are one."""
    return len(text.split()) + len(_IDEOGRAM.findall(text)) / 2


def as_object(value: Any) -> dict[str, Any] | None:
    """Return the JSON object that a value is or, as text, holds alone (also in a code fence); else None."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str) or "{" not in value:
        return None
    text = re.sub(r"^\s*```(?:json)?\s*\n(.*)\n\s*```\s*$", r"\1", value, flags=re.DOTALL)
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def as_text(value: Any) -> str:
    """Return a scalar as the text that stands for it in a table, without spaces around it."""
    return scalar_text(value).strip()


def _profile(name: str, values: Sequence[Any]) -> Profile:
    filled = [value for value in values if not is_blank(value)]
    texts = [as_text(value) for value in filled if not isinstance(value, list | dict)]
    counts = Counter(texts)
    words = sum(map(count_words, texts)) / max(1, len(texts))
    numeric = bool(texts) and _share(_NUMBER, texts) >= _MOSTLY
    content = _content(filled, texts, counts, words, numeric=numeric)
    return Profile(name, content, len(counts), words, numeric)


def _content(
    filled: Sequence[Any], texts: Sequence[str], counts: Counter[str], words: float, *, numeric: bool
) -> Content:
    if not filled:
        return "empty"
    if sum(as_object(value) is not None for value in filled) >= _MOSTLY * len(filled):
        return "object"
    lists = [value for value in filled if isinstance(value, list)]
    if lists and all(isinstance(item, str) for value in lists for item in value):
        return "texts" if len(lists) == len(filled) else "short"
    if len(texts) < len(filled):
        return "short"
    if len(counts) == 1 and len(texts) > 1:
        return "constant"
    return _text_content(texts, counts, words, numeric=numeric)


def _text_content(texts: Sequence[str], counts: Counter[str], words: float, *, numeric: bool) -> Content:
    repeated = sum(n for n in counts.values() if n > 1) / len(texts)
    n_long = sum(len(text) > MOST_CHARACTERS_OF_A_LABEL for text in texts)
    label_like = n_long <= 0.02 * len(texts) and len(counts) <= len(texts) / 2
    if _share(_DATE, texts) >= _MOSTLY:
        return "date"
    if numeric:
        return "few" if label_like and len(counts) <= 12 else "id" if len(counts) == len(texts) else "number"
    if label_like and repeated >= _REPEATED:
        return "few"
    if words >= 3 or (words > 1.5 and repeated < 1 - _REPEATED):
        return "free"
    return "id" if len(counts) == len(texts) and words <= 1.1 else "short"


def _share(pattern: re.Pattern[str], texts: Sequence[str]) -> float:
    return sum(pattern.fullmatch(text) is not None for text in texts) / len(texts)
