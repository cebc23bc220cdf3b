"""The format that a task's answers have: read the value from an answer, write a value as an answer, byte for byte."""

from __future__ import annotations

from typing import Any, Literal

from smallfirst.records import Record
from smallfirst.traffic.messages import Answer


class AnswerFormat(Record):
    """How a value stands in an answer."""

    kind: Literal["label", "json", "text"]
    """A label, a JSON object, or text as it is."""
    prefix: str = ""
    """Constant text before the value: a sentence frame, or the opening of a code fence."""
    suffix: str = ""
    """Constant text after it."""
    tool: str = ""
    """Name of the one function whose arguments hold the value; empty: it stands in the text."""

    def parse(self, answer: Answer) -> Any | None:
        """Return the value in an answer: a str, or a dict for JSON; None if the answer has another format."""
        raise NotImplementedError

    def render(self, value: Any) -> Answer:
        """Return the answer that holds `value`, as the large model would have written it."""
        raise NotImplementedError
