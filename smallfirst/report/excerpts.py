"""Long texts shortened for reading, with the whole text on demand while a budget for the page lasts."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import escape

HEAD_CHARS = 200
MAX_WHOLE_CHARS = 6_000
BUDGET_BYTES = 600_000


class Excerpt(NamedTuple):
    """A text as shown."""

    head: str
    """Its beginning, ending with … if it is cut."""
    whole: str
    """The whole text, or as much of it as a page holds; empty if the head is all."""


class Excerpts:
    """Shortens the texts of one page, one after the other."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._left = budget_bytes

    def __call__(self, text: str, limit: int = HEAD_CHARS) -> Excerpt:
        """Return `text` up to a word's end near `limit` characters, and the whole of it while the budget lasts."""
        if len(text) <= limit + 20:
            return Excerpt(text, "")
        head = text[:limit]
        if (space := head.rfind(" ")) > limit // 2:
            head = head[:space]
        whole = text
        if len(text) > MAX_WHOLE_CHARS:
            whole = f"{text[:MAX_WHOLE_CHARS]} … ({len(text) - MAX_WHOLE_CHARS:,} more characters)"
        size = len(str(escape(whole)).encode())
        if size > self._left:
            return Excerpt(f"{head} …", "")
        self._left -= size
        return Excerpt(f"{head} …", whole)


def question_and_context(text: str) -> tuple[str, str]:
    """Split a text into the question, which is last after a blank line, and its context."""
    context, _, question = text.strip().rpartition("\n\n")
    return question.strip(), context.strip()
