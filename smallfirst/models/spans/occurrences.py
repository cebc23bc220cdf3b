"""Where an answer stands in a text: verbatim, or after the folding by which answers are compared."""

from __future__ import annotations

import re
from typing import NamedTuple

from smallfirst.tasks.scorers import normalize_answer

_ARTICLES = {"a", "an", "the"}


class CharSpan(NamedTuple):
    """Characters of a text, from `start` up to but not including `end`."""

    start: int
    end: int


def occurrences(answer: str, text: str) -> list[CharSpan]:
    """Return every place of `answer` in `text`: as whole words verbatim, else in any case, else word by word folded.

    Folded as `normalize_answer` does, so that what is found there scores 1. Empty if it stands nowhere.
    """
    wanted = answer.strip()
    if not wanted:
        return []
    for flags in (re.NOFLAG, re.IGNORECASE):
        whole = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)", flags)
        if found := [CharSpan(*match.span()) for match in whole.finditer(text)]:
            return found
    return _folded_occurrences(wanted, text)


def _folded_occurrences(answer: str, text: str) -> list[CharSpan]:
    wanted = [word for word, _ in _folded_words(answer)]
    words = _folded_words(text)
    starts = range(len(words) - len(wanted) + 1) if wanted else ()
    return [
        CharSpan(words[i][1].start, words[i + len(wanted) - 1][1].end)
        for i in starts
        if all(words[i + k][0] == word for k, word in enumerate(wanted))
    ]


def _folded_words(text: str) -> list[tuple[str, CharSpan]]:
    """Return the words without punctuation and articles, each with its place less the punctuation at its ends."""
    found = []
    for match in re.finditer(r"\S+", text):
        inner = re.search(r"\w(?:.*\w)?", match[0])
        if inner and (folded := normalize_answer(match[0])) not in _ARTICLES:
            found.append((folded, CharSpan(match.start() + inner.start(), match.start() + inner.end())))
    return found
