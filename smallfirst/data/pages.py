"""Documents as text: pages with a form feed between them, so that every word has a page and an offset."""

from __future__ import annotations

import re
from typing import NamedTuple

PAGE_BREAK = "\f"
SCANNED = "[scanned page]"
"""Stands for a page that is a picture: nothing is guessed about it, and no answer to its document is sure."""
PASSAGE_WORDS = 60
"""Words of a passage, or up to half as many again to the end of a line."""
_WORD = re.compile(r"\S+")


class Span(NamedTuple):
    """Characters of a text, from `start` up to but not including `end`."""

    start: int
    end: int


class PagePlace(NamedTuple):
    """Where words stand in a document."""

    page: int
    """From 1."""
    offset: int
    """Characters from the beginning of the page."""


def page_place(text: str, start: int) -> PagePlace:
    """Return the place of a character."""
    return PagePlace(text.count(PAGE_BREAK, 0, start) + 1, start - text.rfind(PAGE_BREAK, 0, start) - 1)


def has_scanned_page(text: str) -> bool:
    """Return True if a page of the document is a picture."""
    return SCANNED in text and SCANNED in map(str.strip, text.split(PAGE_BREAK))


def passages(text: str) -> list[Span]:
    """Return the passages that together hold all words, in order; none is of two pages."""
    found, first = list[Span](), 0
    for page in text.split(PAGE_BREAK):
        words = [match.span() for match in _WORD.finditer(text, first, first + len(page))]
        at = 0
        while at < len(words):
            end, latest = (min(at + n, len(words)) for n in (PASSAGE_WORDS, PASSAGE_WORDS * 3 // 2))
            while end < latest and "\n" not in text[words[end - 1][1] : words[end][0]]:
                end += 1
            found.append(Span(words[at][0], words[end][0] if end < len(words) else first + len(page)))
            at = end
        first += len(page) + 1
    return found
