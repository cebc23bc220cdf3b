"""Texts as tokens with their places, and token states of texts longer than one pass of the encoder reads.

A longer text is read in windows that overlap by a quarter; a token's state comes from the window in which it stands
farther from an edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from smallfirst.models.encoder.sentence_encoder import SentenceEncoder

OVERLAP = 4
"""Windows overlap by one part in so many."""


class TokenizedText(NamedTuple):
    """One text as the encoder reads it, special tokens included."""

    ids: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    """Start and end (excluded) of each token in the text; equal for special tokens."""


class _Window(NamedTuple):
    ids: list[int]
    kept: slice
    """The tokens whose states are used."""


class WindowReader:
    """An encoder that reads texts of any length."""

    def __init__(self, encoder: SentenceEncoder, max_tokens: int) -> None:
        """Read `max_tokens` tokens at once, special tokens included, or as many as the encoder has positions for."""
        self.encoder = encoder
        self.max_tokens = min(max_tokens, encoder.max_positions - 2)

    def tokenize(self, text: str) -> TokenizedText:
        found = self.encoder.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
        return TokenizedText(tuple(found["input_ids"]), tuple(map(tuple, found["offset_mapping"])))

    def states(self, rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Return the states (texts, tokens, width), float32, and the mask (texts, tokens), 1 for a token."""
        import torch

        windows = [list(self._windows(row)) for row in rows]
        states, mask = self.encoder.hidden_states([window.ids for row in windows for window in row])
        if all(len(row) == 1 for row in windows):
            return states, mask
        parts, at = [], 0
        for row in windows:
            kept = [states[at + i, window.kept] for i, window in enumerate(row)]
            parts.append(torch.cat(kept))
            at += len(row)
        masks = [torch.ones(len(part), dtype=mask.dtype) for part in parts]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(parts, batch_first=True), pad(masks, batch_first=True)

    @cached_property
    def _special(self) -> tuple[int, int]:
        """How many special tokens stand before and behind a text."""
        mask = self.encoder.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        before = mask.index(0)
        return before, len(mask) - before - mask.count(0)

    def _windows(self, ids: Sequence[int]) -> Iterator[_Window]:
        if len(ids) <= self.max_tokens:
            yield _Window(list(ids), slice(0, len(ids)))
            return
        before, behind = self._special
        body, size = list(ids[before : len(ids) - behind]), self.max_tokens - before - behind
        step = size - size // OVERLAP
        starts = list(range(0, len(body) - size, step)) + [len(body) - size]
        kept_to = 0
        for n, start in enumerate(starts):
            end = start + size
            is_last = n + 1 == len(starts)
            keep_end = end if is_last else (starts[n + 1] + end) // 2
            first = 0 if n == 0 else before + kept_to - start
            last = before + keep_end - start + behind * is_last
            yield _Window([*ids[:before], *body[start:end], *ids[len(ids) - behind :]], slice(first, last))
            kept_to = keep_end
