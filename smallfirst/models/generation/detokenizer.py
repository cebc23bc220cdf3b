"""Text from the tokens of a growing answer: whole characters only, and nothing that may be part of a stop text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""Decoded where bytes are not a whole character."""
MAX_PENDING_TOKENS = 12
"""Tokens that wait for a character to become whole; more are taken for bytes that are not a character."""
MAX_CHARACTER_BYTES = 4
"""Bytes of a character in UTF-8; so many tokens may still become one."""


class IncrementalDetokenizer:
    """The text of one answer so far."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._longest = max(map(len, self._stop), default=0)
        self._ids: list[int] = []
        self._from, self._to = 0, 0
        """The next tokens are decoded from `_from` on; those before `_to` are in the text already."""
        self._ends: list[int] = []
        """Length of the text after each token."""
        self._shown: int | None = None
        self.text = ""
        """Whole characters so far, up to the stop text if there was one."""
        self.stopped = False
        """True once a stop text was generated."""

    @property
    def n_received(self) -> int:
        return len(self._ids)

    def add(self, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            if self.stopped:
                return
            self._ids.append(token)
            pending = len(self._ids) - self._to
            if pending > MAX_PENDING_TOKENS:
                self._extend_text(len(self._ids) - MAX_CHARACTER_BYTES)
            elif not self._decode(self._from, len(self._ids)).endswith(REPLACEMENT):
                self._extend_text(len(self._ids))

    def finish(self) -> None:
        if not self.stopped:
            self._extend_text(len(self._ids))

    def take_text(self, *, last: bool = False) -> str:
        """Return the new text that may be shown, without the white space around the answer; `last`: nothing follows."""
        safe = len(self.text) if last else len(self.text) - self._possible_stop()
        until = len(self.text[:safe].rstrip())
        if self._shown is None:
            if not until:
                return ""
            self._shown = len(self.text) - len(self.text.lstrip())
        delta = self.text[self._shown : until]
        self._shown = max(self._shown, until)
        return delta

    def n_emitted(self, *, last: bool = False) -> int:
        """Return how many tokens lie wholly in the text shown so far; `last`: in the whole text."""
        limit = len(self.text) if last else self._shown or 0
        return bisect_right(self._ends, limit) if self.stopped or not last else len(self._ids)

    def _extend_text(self, until: int) -> None:
        before = self._decode(self._from, self._to)
        start = max(0, len(self.text) - self._longest + 1)
        self.text += self._decode(self._from, until)[len(before) :]
        self._ends += [len(self.text)] * (until - self._to)
        self._from, self._to = self._to, until
        found = [at for stop in self._stop if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _possible_stop(self) -> int:
        if self.stopped:
            return 0
        for n in range(min(self._longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[len(self.text) - n :]) for stop in self._stop):
                return n
        return 0

    def _decode(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        return text
