"""Texts as vectors: the mean of a causal model's last hidden states over the text's tokens, at length 1.

Rows are sorted by length and padded on the right without a mask, as causal attention never looks to the right. The
start token is read and not counted: its state is the same for every text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

BATCH_TOKENS = 2048
"""Tokens read at once, padding included; one text alone may be longer."""


def length_batches(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of the rows that are read together, alike in length."""
    chosen: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if chosen and (len(chosen) + 1) * len(rows[i]) > BATCH_TOKENS:
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen


@torch.inference_mode()
def mean_pooled(model: Any, rows: Sequence[Sequence[int]], *, n_start: int) -> list[list[float]]:
    """One vector of length 1 for each row of token ids, none of which is empty.

    The first `n_start` tokens are counted only where there are no others.
    """
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    hidden = model.model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state.float().cpu()
    places = torch.arange(ids.shape[1])
    counted = (places < lengths[:, None]) & ((places >= n_start) | (lengths[:, None] <= n_start))
    mean = (hidden * counted[:, :, None]).sum(dim=1) / counted.sum(dim=1, keepdim=True)
    found: list[list[float]] = torch.nn.functional.normalize(mean, dim=-1).tolist()
    return found
