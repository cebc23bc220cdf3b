"""The format that a task's answers have: read the value from an answer, write a value as an answer, byte for byte."""

from __future__ import annotations

import json
from typing import Any, Literal

from smallfirst.records import Record
from smallfirst.traffic.answers.json_writing import JsonWriting
from smallfirst.traffic.messages import Answer, ToolCall


class AnswerFormat(Record):
    """How a value stands in an answer."""

    kind: Literal["label", "json", "text"]
    """A label, a JSON object or list, or text as it is."""
    prefix: str = ""
    """Constant text before the value: a sentence frame, or the opening of a code fence."""
    suffix: str = ""
    """Constant text after it."""
    tool: str = ""
    """Name of the one function whose arguments hold the value; empty: it stands in the text."""
    writing: JsonWriting = JsonWriting()
    """How JSON is written: order of keys, spaces, decimals."""

    def parse(self, answer: Answer) -> Any | None:
        """Return the value in an answer: a str, or a dict or list for JSON; None if the answer has another format."""
        text = self._written(answer)
        if text is None or not text.startswith(self.prefix) or not text.endswith(self.suffix):
            return None
        inner = text[len(self.prefix) : len(text) - len(self.suffix)]
        if len(text) < len(self.prefix) + len(self.suffix):
            return None
        if self.kind != "json":
            return inner.strip() or None
        try:
            value = json.loads(inner)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict | list) else None

    def render(self, value: Any) -> Answer:
        """Return the answer that holds `value`, as the large model would have written it.

        `value` is what `parse` returns; JSON may also be given as text. Raise ValueError for text that is no JSON.
        """
        if self.kind == "json":
            inner = self.writing.write(json.loads(value) if isinstance(value, str) else value)
        else:
            inner = str(value)
        text = f"{self.prefix}{inner}{self.suffix}"
        return Answer("", (ToolCall(self.tool, text),), "tool_calls") if self.tool else Answer(text)

    def reproduces(self, answer: Answer) -> bool:
        """Return True if the value in the answer is written again byte for byte."""
        value = self.parse(answer)
        if value is None:
            return False
        again = self.render(value)
        return again.text == answer.text and again.tool_calls == answer.tool_calls

    def _written(self, answer: Answer) -> str | None:
        """Return the text that should hold the value; None for a refusal, a cut-off answer and other tool calls."""
        if answer.finish_reason not in ("stop", "tool_calls"):
            return None
        if not self.tool:
            return None if answer.tool_calls else answer.text
        if len(answer.tool_calls) != 1 or answer.tool_calls[0].name != self.tool:
            return None
        return answer.tool_calls[0].arguments
