"""How a batch is read in training: a beginning that its rows share is read once, and so are layers that do not move.

Rows of a conversation often begin with the same instruction. Its keys and values are computed once a batch and every
row looks at them, so that gradients of all rows meet in the one reading: the same loss and gradient as reading it with
every row, for less work. Frozen lower layers compute the same for a row in every epoch, so they compute it once a run;
the price is memory, two bytes for each number of a row's hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from smallfirst.errors import TrainingError
from smallfirst.models.local.kv_cache import cache_argument
from smallfirst.training.batches import Batch, TokenizedRow, collate, micro_batches

MIN_SHARED_PREFIX_TOKENS = 8
"""A common beginning from so many tokens on is read once; a shorter one saves less than reading it apart costs."""
FROZEN_BATCH_TOKENS = 2048
"""Tokens put through the frozen layers at once, padding included."""


class TargetStates(NamedTuple):
    """Where a batch is judged: hidden states before each target token (n, hidden), and those tokens (n,)."""

    states: torch.Tensor
    tokens: torch.Tensor


def forward(model: Any, rows: Sequence[TokenizedRow], lower: FrozenLayers | None = None) -> TargetStates:
    """The hidden states from which the rows' targets are predicted, on the way to a gradient."""
    batch = collate(rows)
    row, position, token = batch.targets.to(model.device).unbind(1)
    if lower is not None:
        hidden, n_shared = lower.forward_upper(model, rows), 0
    else:
        n_shared = shared_prefix_tokens(rows)
        hidden = forward_with_shared_prefix(model, batch, n_shared) if n_shared else forward_rows(model, batch)
    return TargetStates(hidden[row, position - n_shared], token)


def shared_prefix_tokens(rows: Sequence[TokenizedRow]) -> int:
    """Tokens that all rows begin with, up to the one from which the first target is predicted; 0 if not worth it."""
    if len(rows) < 2:
        return 0
    most = min(row.n_prompt for row in rows) - 1
    if most < MIN_SHARED_PREFIX_TOKENS:
        return 0
    first, last = min(row.ids[:most] for row in rows), max(row.ids[:most] for row in rows)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=True)) if a != b), most)
    return n if n >= MIN_SHARED_PREFIX_TOKENS else 0


def forward_rows(model: Any, batch: Batch) -> torch.Tensor:
    """Hidden states after each token of the batch (rows, width, hidden)."""
    hidden: torch.Tensor = model.model(input_ids=batch.ids.to(model.device), use_cache=False).last_hidden_state
    return hidden


def forward_with_shared_prefix(model: Any, batch: Batch, n_shared: int) -> torch.Tensor:
    """Hidden states after the shared beginning (rows, width − n_shared, hidden)."""
    from transformers import DynamicCache

    ids, name = batch.ids.to(model.device), cache_argument(model)
    cache: Any = DynamicCache()  # its layers carry no types
    model.model(input_ids=ids[:1, :n_shared], use_cache=True, **{name: cache})
    for layer in cache.layers:  # looked at by every row, kept once
        layer.keys = layer.keys.expand(len(ids), -1, -1, -1)
        layer.values = layer.values.expand(len(ids), -1, -1, -1)
    hidden: torch.Tensor = model.model(input_ids=ids[:, n_shared:], use_cache=True, **{name: cache}).last_hidden_state
    return hidden


class FrozenLayers:
    """The first layers of a model, which do not move, and what they have made of each row."""

    def __init__(self, model: Any, n_layers: int) -> None:
        """Nothing is read yet. Raises TrainingError if the model has no layer to spare, or cannot be cut in two."""
        self.n_layers = n_layers
        self._kept: dict[tuple[int, ...], torch.Tensor] = {}
        if not 0 < n_layers < len(model.model.layers):
            raise TrainingError(
                f"frozen_layers is {n_layers}, the model has {len(model.model.layers)} layers",
                hint="leave at least one layer to train",
            )
        self._check(model)

    @torch.no_grad()
    def fill(self, model: Any, rows: Sequence[TokenizedRow]) -> None:
        """Nothing back; what the frozen layers make of each row is kept."""
        known = {row.ids[:-1]: row for row in rows}
        for part in micro_batches(sorted(known.values(), key=lambda row: len(row.ids)), FROZEN_BATCH_TOKENS):
            states = self._below(model, collate(part).ids.to(model.device))
            for row, own in zip(part, states, strict=True):
                self._kept[row.ids[:-1]] = own[: len(row.ids) - 1].clone()

    def forward_upper(self, model: Any, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        """Hidden states of rows that were filled in, after the last layer (rows, width, hidden)."""
        kept = [self._kept[row.ids[:-1]] for row in rows]
        return self._above(model, torch.nn.utils.rnn.pad_sequence(kept, batch_first=True))

    def _below(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        with _only(model.model, slice(0, self.n_layers), torch.nn.Identity()):
            hidden: torch.Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    def _above(self, model: Any, states: torch.Tensor) -> torch.Tensor:
        with _only(model.model, slice(self.n_layers, None), model.model.norm):
            hidden: torch.Tensor = model.model(inputs_embeds=states, use_cache=False).last_hidden_state
        return hidden

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        """Some architectures scale what is put in, or number their layers: those cannot be cut."""
        ids = torch.arange(4, 12, device=model.device)[None]
        whole = model.model(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.equal(self._above(model, self._below(model, ids)), whole):
            raise TrainingError(
                f"{type(model).__name__} cannot be read in two halves", hint="set frozen_layers to 0, or method to lora"
            )


@contextmanager
def _only(body: Any, layers: slice, norm: torch.nn.Module) -> Iterator[None]:
    """Inside the block the body consists of these layers and ends in `norm`."""
    whole = body.layers, body.norm, body.config.num_hidden_layers
    body.layers, body.norm = body.layers[layers], norm
    body.config.num_hidden_layers = len(body.layers)
    try:
        yield
    finally:
        body.layers, body.norm, body.config.num_hidden_layers = whole
