"""Token rows of unequal length as batches: sorted by length, padded on the right, which needs no causal mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


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
