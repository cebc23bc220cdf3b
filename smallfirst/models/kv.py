"""Keys and values of what a batch of rows has read so far, with each row's own length.

Blocks of unequal length are padded on the right; a padded key is never seen again, and every row counts its own
positions. So rows of any length share a batch at the price of the padding's memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch


class KeyValues:
    """What `n_rows` rows have read, and which of the keys kept for each are its own."""

    def __init__(self, model: Any, n_rows: int) -> None:
        """Empty; nothing is read yet."""
        from transformers import DynamicCache

        self.model, self._cache, self._name = model, DynamicCache(), cache_name(model)
        self.seen = torch.zeros(n_rows, 0, dtype=torch.bool)
        self.lengths = torch.zeros(n_rows, dtype=torch.long)

    def read(self, blocks: Sequence[Sequence[int]]) -> torch.Tensor:
        """Hidden state after the last token of each row's block (rows, hidden). No block is empty."""
        counts = torch.tensor([len(block) for block in blocks])
        width = int(counts.max())
        ids = torch.zeros(len(blocks), width, dtype=torch.long)
        for i, block in enumerate(blocks):
            ids[i, : len(block)] = torch.tensor(block)
        own = torch.arange(width) < counts[:, None]  # (rows, width)
        device, dtype = self.model.device, self.model.dtype
        hidden = self.model.model(
            input_ids=ids.to(device),
            position_ids=(self.lengths[:, None] + torch.arange(width)).to(device),
            attention_mask=self._mask(own, dtype, device),
            use_cache=True,
            **{self._name: self._cache},
        ).last_hidden_state
        self.seen = torch.cat([self.seen, own], dim=1)
        self.lengths += counts
        last: torch.Tensor = hidden[torch.arange(len(blocks)), counts - 1]
        return last

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing back; only these rows stay, in this order."""
        chosen = torch.tensor(rows)
        self._cache.batch_select_indices(chosen.to(self.model.device))
        self.seen, self.lengths = self.seen[chosen], self.lengths[chosen]

    def _mask(self, own: torch.Tensor, dtype: torch.dtype, device: Any) -> torch.Tensor | None:
        """What is added to the scores (rows, 1, width, keys); None while plain causal attention does the same."""
        if not self.seen.shape[1]:
            return None
        width = own.shape[1]
        before = self.seen[:, None].expand(-1, width, -1)
        among = own[:, None] & torch.ones(width, width, dtype=torch.bool).tril()
        visible = torch.cat([before, among], dim=-1)
        added = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        return added[:, None].to(device)


def cache_name(model: Any) -> str:
    """What this release of transformers calls the keys and values read so far."""
    names = inspect.signature(type(model.model).forward).parameters
    return "cache" if "cache" in names else "past_key_values"
