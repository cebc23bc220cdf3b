"""Long texts cut for reading, the whole text on demand, within a budget for the page.

A page of five thousand long rows must still open on a phone, so the whole texts together may take so many bytes and no
more; what comes after them is cut for good. The price: which texts are whole depends on what is shown before.
"""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import escape

SHOWN = 200
LONGEST_WHOLE = 6_000
BUDGET_BYTES = 600_000


class Excerpt(NamedTuple):
    """A text as shown."""

    head: str
    """Its beginning, ending with … if it is cut."""
    whole: str
    """The whole text, or as much of it as a page holds; empty if the head is all."""


class Excerpts:
    """Cuts the texts of one page, one after the other."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        """The budget is for whole texts, counted as they are written in HTML."""
        self._left = budget_bytes

    def __call__(self, text: str, limit: int = SHOWN) -> Excerpt:
        """The beginning of `text` up to a word's end near `limit` characters; the whole of it while there is room."""
        if len(text) <= limit + 20:
            return Excerpt(text, "")
        head = text[:limit]
        if (space := head.rfind(" ")) > limit // 2:
            head = head[:space]
        whole = text
        if len(text) > LONGEST_WHOLE:
            whole = f"{text[:LONGEST_WHOLE]} … ({len(text) - LONGEST_WHOLE:,} more characters)"
        size = len(str(escape(whole)).encode())
        if size > self._left:
            return Excerpt(f"{head} …", "")
        self._left -= size
        return Excerpt(f"{head} …", whole)


def question_and_context(text: str) -> tuple[str, str]:
    """What is asked and the text it is asked about: the question stands last, after a blank line."""
    context, _, question = text.strip().rpartition("\n\n")
    return question.strip(), context.strip()
