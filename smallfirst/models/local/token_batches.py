"""Token rows of unequal length as batches: sorted by length, padded on the right, which needs no causal mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

SHAPE_STEP = 8
"""The number of tokens in a batch is rounded up to a multiple of this, of twice this above 128, and of eight times
above 256: oneDNN keeps a kernel of some 100 kB for each number that it has seen, up to a thousand."""


def rounded_tokens(n: int) -> int:
    """Return the number of tokens, at least `n`, that a batch of `n` is computed with; see `SHAPE_STEP`."""
    step = SHAPE_STEP * (1 if n <= 128 else 2 if n <= 256 else 8)
    return -(-n // step) * step


def length_batches(
    lengths: Sequence[int], *, max_rows: int | None = None, max_tokens: int | None = None
) -> Iterator[list[int]]:
    """Yield row numbers by batch, shortest first; `max_tokens` includes padding, a longer row is alone."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = max_tokens is not None and (len(batch) + 1) * lengths[i] > max_tokens
        if batch and (full or len(batch) == max_rows):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pad_right(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the token ids (rows, longest), int64, zeros behind each row."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids
