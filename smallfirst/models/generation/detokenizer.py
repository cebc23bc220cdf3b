"""The text of an answer while its tokens come: whole characters only, and nothing that may be part of a stop text.

A token may end inside a character, and several together may decode otherwise than each alone. So the newest tokens
are decoded together with a few before them, and text counts only once its last character is whole: a step costs the
same however long the answer is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""What stands for bytes that are no whole character."""
MAX_PENDING_TOKENS = 12
"""Tokens that wait for a character to become whole; with more, they are taken for what they are: none."""
MAX_CHARACTER_BYTES = 4
"""Bytes of a character in UTF-8; so many tokens may still become one."""


class IncrementalDetokenizer:
    """What can be said of an answer's text so far."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        """`stop` are the texts before which the answer ends."""
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._longest = max(map(len, self._stop), default=0)
        self._ids: list[int] = []
        self._from, self._to = 0, 0
        self._ends: list[int] = []
        self._shown: int | None = None
        self.text = ""
        """Whole characters so far; up to the stop text, once there was one."""
        self.stopped = False
        """True once a stop text was written."""

    @property
    def n_heard(self) -> int:
        """Tokens added so far."""
        return len(self._ids)

    def add(self, token_ids: Sequence[int]) -> None:
        """Nothing back; these tokens follow. After a stop text nothing does."""
        for token in token_ids:
            if self.stopped:
                return
            self._ids.append(token)
            self._take()

    def finish(self) -> None:
        """Nothing back; what is no whole character now never will be one."""
        if not self.stopped:
            self._read(len(self._ids))

    def show(self, *, last: bool = False) -> str:
        """Text that may be shown and was not; without white space around the answer. `last`: nothing follows."""
        safe = len(self.text) if last else len(self.text) - self._doubtful()
        until = len(self.text[:safe].rstrip())
        if self._shown is None:
            if not until:
                return ""
            self._shown = len(self.text) - len(self.text.lstrip())
        piece = self.text[self._shown : until]
        self._shown = max(self._shown, until)
        return piece

    def n_told(self, *, last: bool = False) -> int:
        """How many tokens stand whole in what was shown; if it is the last, in the whole text."""
        limit = len(self.text) if last else self._shown or 0
        return bisect_right(self._ends, limit) if self.stopped or not last else len(self._ids)

    def _take(self) -> None:
        torn = len(self._ids) - self._to
        if torn > MAX_PENDING_TOKENS:
            self._read(len(self._ids) - MAX_CHARACTER_BYTES)
        elif not self._decode(self._from, len(self._ids)).endswith(REPLACEMENT):
            self._read(len(self._ids))

    def _read(self, until: int) -> None:
        """Nothing back; tokens up to `until` become text."""
        before = self._decode(self._from, self._to)
        start = len(self.text)
        self.text += self._decode(self._from, until)[len(before) :]
        self._ends += [len(self.text)] * (until - self._to)
        self._from, self._to = self._to, until
        self._end_before_stop(max(0, start - self._longest + 1))

    def _end_before_stop(self, start: int) -> None:
        found = [at for stop in self._stop if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _doubtful(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        if self.stopped:
            return 0
        for n in range(min(self._longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[len(self.text) - n :]) for stop in self._stop):
                return n
        return 0

    def _decode(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        return text
