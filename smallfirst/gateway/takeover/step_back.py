"""What shows that a task is asked in another way than it was learnt: another wording, or one that grew into a slot."""

from __future__ import annotations

from collections import deque

N_RECENT = 40
"""Requests of a task, or like it, that are looked back on."""
NEAR_ENOUGH = 0.9
"""Share of these that follow no known wording, from which on the wording counts as changed."""
N_SAME = 12
"""Different cases in a row that begin or end alike, from which on the common part counts as wording."""
MIN_SAME = 16
"""Characters that they have in common."""


class WordingWatch:
    """The wordings of one task's recent requests."""

    def __init__(self) -> None:
        self._missed: deque[bool] = deque(maxlen=N_RECENT)
        self._texts: deque[str] = deque(maxlen=N_SAME)

    def followed(self, text: str) -> str:
        """Add a request that follows a wording; return what is wrong, in a sentence, or nothing.

        `text` is its case. Cases that all begin or end alike mean that the prompt has grown where a slot was.
        """
        self._missed.append(False)
        if text not in self._texts:
            self._texts.append(text)
        if len(self._texts) < N_SAME:
            return ""
        begins = _common_beginning(list(self._texts))
        ends = _common_beginning([one[::-1] for one in self._texts])[::-1]
        same, where = max((begins, "begin"), (ends, "end"), key=lambda found: len(found[0]))
        if len(same.strip()) < MIN_SAME:
            return ""
        return f"the application's prompt has changed: the last {N_SAME} cases all {where} with {same[:60]!r}"

    def missed(self) -> str:
        """Add a request that resembles a wording and follows none; return what is wrong, in a sentence, or nothing."""
        self._missed.append(True)
        n = sum(self._missed)
        if len(self._missed) < N_RECENT or n < NEAR_ENOUGH * N_RECENT:
            return ""
        return f"the application's prompt has changed: {n} of the last {N_RECENT} requests follow no known wording"


def _common_beginning(texts: list[str]) -> str:
    first, last = min(texts), max(texts)  # all others stand between these two
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:n]
