"""Keys and values of a batch of rows, each of its own length; blocks are padded on the right, padding is never seen."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from smallfirst.models.local.token_batches import SHAPE_STEP, pad_right, rounded_tokens

COMPACT_ABOVE_RATIO = 1.25
COMPACT_ABOVE_COLUMNS = 64
"""The cache is compacted if it has more columns than this ratio of the longest row, plus so many columns."""


class KVCache:
    """Keys and values of `n_rows` rows."""

    def __init__(self, model: Any, n_rows: int) -> None:
        from transformers import DynamicCache

        self.model, self._argument = model, cache_argument(model)
        self._cache: Any = DynamicCache()
        self.seen = torch.zeros(n_rows, 0, dtype=torch.bool)
        """Which of the kept keys are a row's own (rows, columns)."""
        self.lengths = torch.zeros(n_rows, dtype=torch.long)

    @property
    def columns(self) -> int:
        """Keys kept for each row, padding included."""
        return int(self.seen.shape[1])

    def read(self, blocks: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read one block of tokens a row, none empty; return the state after each block's last token (rows, hidden)."""
        counts, longest = torch.tensor([len(block) for block in blocks]), max(map(len, blocks))
        width = rounded_tokens(longest) if longest > SHAPE_STEP else longest  # the few tokens of a step stay few
        ids = F.pad(pad_right(blocks), (0, width - longest))
        own = torch.arange(width) < counts[:, None]  # (rows, width)
        among = own[:, None] & torch.ones(width, width, dtype=torch.bool).tril()
        # Until something is read, plain causal attention does the same without a mask.
        hidden = self._forward(ids, self.lengths[:, None] + torch.arange(width), among if self.columns else None)
        self.seen = torch.cat([self.seen, own[:, :longest]], dim=1)
        for layer in self._cache.layers if width > longest else ():
            layer.keys, layer.values = layer.keys[:, :, : self.columns], layer.values[:, :, : self.columns]
        self.lengths += counts
        return hidden[torch.arange(len(blocks)), counts - 1]

    def read_tree(self, tokens: Sequence[int], depths: Sequence[int], visible: torch.Tensor) -> torch.Tensor:
        """Read a tree of tokens after every row, the last read; return states (rows, tokens, hidden).

        depths (tokens,) count from 1; visible (tokens, tokens) says which tokens each one sees.
        """
        rows = len(self.lengths)
        positions = self.lengths[:, None] + torch.tensor(depths) - 1
        return self._forward(torch.tensor(tokens).expand(rows, -1), positions, visible.expand(rows, -1, -1))

    def select_rows(self, rows: Sequence[int]) -> None:
        chosen = torch.tensor(rows)
        self._cache.batch_select_indices(chosen.to(self.model.device))
        self.seen, self.lengths = self.seen[chosen], self.lengths[chosen]

    def repeat(self, n_rows: int) -> KVCache:
        """Return a cache of `n_rows` rows that all begin like the one row of this cache, which stays as it is."""
        found = KVCache(self.model, 0)
        for number, layer in enumerate(self._cache.layers):
            found._cache.update(layer.keys.repeat(n_rows, 1, 1, 1), layer.values.repeat(n_rows, 1, 1, 1), number)
        found.seen, found.lengths = self.seen.repeat(n_rows, 1), self.lengths.repeat(n_rows)
        return found

    def join(self, others: KVCache) -> None:
        """Append the rows of `others`. Both caches must be of one model and have read something."""
        width = max(self.columns, others.columns)
        for mine, new in zip(self._cache.layers, others._cache.layers, strict=True):
            mine.keys = torch.cat([_widen(mine.keys, width), _widen(new.keys, width)])
            mine.values = torch.cat([_widen(mine.values, width), _widen(new.values, width)])
        seen = [F.pad(part.seen, (0, width - part.columns)) for part in (self, others)]
        self.seen, self.lengths = torch.cat(seen), torch.cat([self.lengths, others.lengths])

    def compact(self) -> bool:
        """Move every row's own keys to the front if that saves many columns; return whether it did."""
        width = int(self.lengths.max())
        if self.columns <= COMPACT_ABOVE_RATIO * width + COMPACT_ABOVE_COLUMNS:
            return False
        order = self.seen.int().argsort(dim=1, descending=True, stable=True)[:, :width]  # (rows, width)
        for layer in self._cache.layers:
            layer.keys, layer.values = _gather(layer.keys, order), _gather(layer.values, order)
        self.seen = torch.arange(width) < self.lengths[:, None]
        return True

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, among: torch.Tensor | None) -> torch.Tensor:
        """Return states (rows, width, hidden); `among` (rows, width, width) says which of `ids` see each other."""
        device, dtype, mask = self.model.device, self.model.dtype, None
        if among is not None:
            visible = torch.cat([self.seen[:, None].expand(-1, ids.shape[1], -1), among], dim=-1)
            mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
        states: torch.Tensor = self.model.model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=None if mask is None else mask.to(device),  # (rows, 1, width, keys)
            use_cache=True,
            **{self._argument: self._cache},
        ).last_hidden_state
        return states


def cache_argument(model: Any) -> str:
    """Return the name of the cache argument in the installed release of transformers."""
    names = inspect.signature(type(model.model).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _widen(part: torch.Tensor, columns: int) -> torch.Tensor:
    return F.pad(part, (0, 0, 0, columns - part.shape[2]))


def _gather(part: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    at = order.to(part.device)[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3])
    return part.gather(2, at)
