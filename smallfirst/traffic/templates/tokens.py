"""Tokens of prompts, and runs of a few tokens as hashes: what prompts of one program share is found by these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smallfirst.data.importers.constant_text import tokens, varies_by_nature
from smallfirst.traffic.messages import Prompt

RUN = 5
"""Tokens in a run."""
_FOLDED = "0"
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Runs(NamedTuple):
    """Runs of tokens in some prompts, each once a prompt."""

    hashes: NDArray[np.uint64]
    prompts: NDArray[np.int64]
    """Index of the prompt that each stands in."""


class Tokenizer:
    """Numbers for tokens, dates and numbers folded into one; messages that come again are read once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {_FOLDED: 0}
        self._turns: dict[str, NDArray[np.int64]] = {}

    def runs(self, prompts: Sequence[Prompt]) -> Runs:
        """Return the runs of all messages of each prompt, role by role."""
        arrays = [_run_hashes(np.concatenate([self._turn(t.role, t.text) for t in prompt.turns])) for prompt in prompts]
        hashes = np.concatenate(arrays) if arrays else np.empty(0, np.uint64)
        which = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
        return Runs(hashes, which)

    def _turn(self, role: str, text: str) -> NDArray[np.int64]:
        key = f"{role}\0{text}"
        found = self._turns.get(key)
        if found is None:
            words = (_FOLDED if varies_by_nature(token) else token for token in tokens(text))
            numbers = self._numbers
            ids = [numbers.setdefault(word, len(numbers)) for word in (f"\0{role}", *words)]
            found = self._turns[key] = np.array(ids, dtype=np.int64)
        return found


def _run_hashes(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the distinct hashes of runs of `RUN` numbers."""
    values = numbers.astype(np.uint64) + np.uint64(1)
    n = max(len(values) - RUN + 1, 1)
    values = np.pad(values, (0, n + RUN - 1 - len(values)))
    hashes = np.zeros(n, np.uint64)
    for i in range(RUN):
        hashes = (hashes ^ values[i : i + n]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)
