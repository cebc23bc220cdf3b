"""Keys and values of what a batch of rows has read so far, with each row's own length.

Blocks of unequal length are padded on the right; a padded key is never seen again, and every row counts its own
positions. So rows of any length share a batch, rows may join one that is under way, and columns that no row needs can
be taken out. The price is the padding's memory, and a copy of everything for each of these changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

COMPACT_ABOVE_RATIO = 1.25
COMPACT_ABOVE_COLUMNS = 64
"""Columns are packed when there are more than this share of the longest row's tokens and so many more."""


class KVCache:
    """What `n_rows` rows have read, and which of the keys kept for each are its own."""

    def __init__(self, model: Any, n_rows: int) -> None:
        """Empty; nothing is read yet."""
        from transformers import DynamicCache

        self.model, self._name = model, cache_argument(model)
        self._cache: Any = DynamicCache()
        self.seen = torch.zeros(n_rows, 0, dtype=torch.bool)
        self.lengths = torch.zeros(n_rows, dtype=torch.long)

    @property
    def columns(self) -> int:
        """Keys kept for each row, padding included."""
        return int(self.seen.shape[1])

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

    def copies(self, n_rows: int) -> KVCache:
        """What `n_rows` rows have read that all begin like this one row; the row itself stays as it is."""
        found = KVCache(self.model, 0)
        for number, layer in enumerate(self._cache.layers):
            found._cache.update(layer.keys.repeat(n_rows, 1, 1, 1), layer.values.repeat(n_rows, 1, 1, 1), number)
        found.seen, found.lengths = self.seen.repeat(n_rows, 1), self.lengths.repeat(n_rows)
        return found

    def join(self, others: KVCache) -> None:
        """Nothing back; the rows of `others` stand behind these. Both must be of one model and have read something."""
        width = max(self.columns, others.columns)
        for mine, new in zip(self._cache.layers, others._cache.layers, strict=True):
            mine.keys = torch.cat([_widened(mine.keys, width), _widened(new.keys, width)])
            mine.values = torch.cat([_widened(mine.values, width), _widened(new.values, width)])
        seen = [F.pad(part.seen, (0, width - part.columns)) for part in (self, others)]
        self.seen, self.lengths = torch.cat(seen), torch.cat([self.lengths, others.lengths])

    def pack(self) -> bool:
        """True if every row's own keys were moved to the front, so that fewer columns do; False if few are in vain."""
        width = int(self.lengths.max())
        if self.columns <= COMPACT_ABOVE_RATIO * width + COMPACT_ABOVE_COLUMNS:
            return False
        order = self.seen.int().argsort(dim=1, descending=True, stable=True)[:, :width]  # (rows, width)
        for layer in self._cache.layers:
            layer.keys, layer.values = _gathered(layer.keys, order), _gathered(layer.values, order)
        self.seen = torch.arange(width) < self.lengths[:, None]
        return True

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


def cache_argument(model: Any) -> str:
    """What this release of transformers calls the keys and values read so far."""
    names = inspect.signature(type(model.model).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _widened(part: torch.Tensor, columns: int) -> torch.Tensor:
    """Keys or values (rows, heads, columns, head_dim) with zeros behind them up to `columns`."""
    return F.pad(part, (0, 0, 0, columns - part.shape[2]))


def _gathered(part: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Keys or values with the columns of each row that `order` (rows, width) names."""
    at = order.to(part.device)[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3])
    return part.gather(2, at)
