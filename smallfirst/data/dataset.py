"""Rows as immutable records: Message, Example, Dataset.

A row's identity is its content, not its place in a file. The price: two equal rows are one row
told twice, and cannot be kept apart.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from typing import Literal

from smallfirst.records import Record, fingerprint

RowFormat = Literal["label", "labels", "target", "question", "prompt", "chat", "text"]
"""text + label · text + labels · text + target (JSON) · question + answer · prompt + response · chat messages ·
text to continue."""


class Message(Record):
    """One turn of a conversation, as OpenAI's API writes it."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


class Example(Record):
    """One row: what is asked and what the right answer is."""

    messages: tuple[Message, ...]
    """What is asked, oldest first; empty for text to continue."""
    answer: str
    """The gold label, canonical JSON, the response, or the text to continue; empty if there is no gold answer."""
    also: tuple[str, ...] = ()
    """Other answers that are as right."""
    shape: RowFormat
    """Which of the row shapes it was read from."""
    path: str = ""
    """File it came from."""
    line: int = 0
    """Line in that file, from 1."""

    @property
    def text(self) -> str:
        """Content of the last user message."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def golds(self) -> tuple[str, ...]:
        """All right answers, the row's own first."""
        return (self.answer, *self.also)

    @property
    def asked(self) -> str:
        """What is asked, as one text: by this, splits and leak checks tell rows apart.

        The user's text; for a chat all turns before the answer but the system's; for text to
        continue that text.
        """
        if not self.messages:
            return self.answer
        if self.shape != "chat":
            return self.text
        return "\n".join(m.content for m in self.messages if m.role != "system")

    @cached_property
    def key(self) -> str:
        """16 hex digits from the content alone: equal rows have equal keys wherever they stand."""
        content: list[object] = [[[m.role, m.content] for m in self.messages], self.answer]
        return fingerprint([*content, list(self.also)] if self.also else content)


class Dataset(Record):
    """Rows in file order."""

    name: str
    """Usually the file name."""
    examples: tuple[Example, ...]
    """The rows."""

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.examples)

    @cached_property
    def content_fingerprint(self) -> str:
        """16 hex digits that change when a row is added, removed or edited, not when rows move."""
        return fingerprint(sorted(example.key for example in self.examples))

    def labels(self) -> tuple[str, ...]:
        """Distinct answers, sorted."""
        return tuple(sorted({example.answer for example in self.examples}))

    def subset(self, name: str, examples: tuple[Example, ...]) -> Dataset:
        """A dataset of some of these rows."""
        return Dataset(name=name, examples=examples)


def fold_text(text: str) -> str:
    """`text` without case, punctuation, spacing and Unicode variants: equal means «the same text».

    A text of nothing but punctuation stands for itself, so that not all such texts are one.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", plain).strip() or " ".join(plain.split())
