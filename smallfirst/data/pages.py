"""Documents as text: pages with a form feed between them, so that every word has a page and an offset."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

PAGE_BREAK = "\f"
SCANNED = "[scanned page]"
"""Stands for a page that is a picture: nothing is guessed about it, and no answer to its document is sure."""
PASSAGE_WORDS = 60
"""Words of a passage, or up to half as many again to the end of a line."""
AROUND = 120
"""Characters shown before and behind a mark."""
_CUT_WORD, _CUT_WORD_BEFORE = re.compile(r"\s*\S{0,30}$"), re.compile(r"^\S{0,30}\s*")
_PLACEHOLDER = re.compile(r"\[(?:[A-Z_]+|[\d,]+ characters of data)\]")
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


def kept_span(text: str, place: PagePlace, n: int) -> Span | None:
    """Return where `n` characters of a document stand in the text that is kept; None if redaction may have moved them.

    A placeholder moves what stands behind it on its page.
    """
    pages = [*text.split(PAGE_BREAK), ""]
    before, page = pages[: place.page - 1], pages[min(place.page, len(pages)) - 1]
    placeholder, start = _PLACEHOLDER.search(page), sum(map(len, before)) + len(before) + place.offset
    if place.offset + n > len(page) or (placeholder and placeholder.start() < place.offset + n):
        return None
    return Span(start, start + n)


def is_document(text: str) -> bool:
    """Return True for a text of more than a passage."""
    return len(passages(text)) > 1


def has_scanned_page(text: str) -> bool:
    """Return True if a page of the document is a picture."""
    return SCANNED in text and SCANNED in map(str.strip, text.split(PAGE_BREAK))


class Piece(NamedTuple):
    """Words of a passage; those between marks have no names."""

    text: str
    names: tuple[str, ...] = ()
    """Of the marks that it stands for."""


class MarkedPassage(NamedTuple):
    """A part of a page around marks."""

    page: int
    pieces: tuple[Piece, ...]


def marked_passages(text: str, marks: Mapping[str, Span]) -> list[MarkedPassage]:
    """Return what stands around marks, in order: AROUND characters of the page each way; overlapping marks are one."""
    groups = list[list[tuple[Span, tuple[str, ...]]]]()
    for name, own in sorted(marks.items(), key=lambda mark: mark[1]):
        last, names = groups[-1][-1] if groups else (Span(0, -1), ())
        if own.start < last.end:
            groups[-1][-1] = (Span(last.start, max(last.end, own.end)), (*names, name))
        elif names and own.start - last.end <= 2 * AROUND and PAGE_BREAK not in text[last.end : own.start]:
            groups[-1].append((own, (name,)))
        else:
            groups.append([(own, (name,))])
    found = []
    for group in groups:
        at, place = group[0][0].start, page_place(text, group[0][0].start)
        before = text[at - min(place.offset, AROUND) : at]
        pieces = [Piece(_CUT_WORD_BEFORE.sub("… ", before, count=1) if place.offset > AROUND else before)]
        for own, names in group:
            pieces += [Piece(text[at : own.start]), Piece(text[own.start : own.end], names)]
            at = own.end
        rest = text[at : at + AROUND].partition(PAGE_BREAK)[0]
        pieces.append(Piece(_CUT_WORD.sub(" …", rest, count=1) if len(rest) == AROUND else rest))
        found.append(MarkedPassage(place.page, tuple(piece for piece in pieces if piece.text)))
    return found


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
