"""Keep the lowest layers of a model fixed, and compute their hidden states of each row once (two bytes a number)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from smallfirst.errors import TrainingError
from smallfirst.training.batches import TokenizedRow, collate, micro_batches

FROZEN_BATCH_TOKENS = 2048
"""Tokens put through the frozen layers at once, padding included."""


class FrozenLayers:
    """The lowest layers of a model and the hidden states they give for each row."""

    def __init__(self, model: Any, n_layers: int) -> None:
        """Freeze the embedding and `n_layers` layers. Raise TrainingError if the model cannot be cut there."""
        self.n_layers = n_layers
        self._states: dict[tuple[int, ...], torch.Tensor] = {}
        if not 0 < n_layers < len(model.model.layers):
            raise TrainingError(
                f"frozen_layers is {n_layers}, the model has {len(model.model.layers)} layers",
                hint="leave at least one layer to train",
            )
        self._check(model)
        for part in (model.get_input_embeddings(), *model.model.layers[:n_layers]):
            part.requires_grad_(False)

    @torch.no_grad()
    def fill(self, model: Any, rows: Sequence[TokenizedRow]) -> None:
        """Compute and keep the hidden states of each row after the frozen layers."""
        known = {row.ids[:-1]: row for row in rows}
        for part in micro_batches(sorted(known.values(), key=lambda row: len(row.ids)), FROZEN_BATCH_TOKENS):
            states = self._forward_lower(model, collate(part).ids.to(model.device))
            for row, own in zip(part, states, strict=True):
                self._states[row.ids[:-1]] = own[: len(row.ids) - 1].clone()

    def forward_upper(self, model: Any, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        """Return the hidden states after the last layer (rows, width, hidden) of rows given to `fill` before."""
        states = [self._states[row.ids[:-1]] for row in rows]
        return self._forward_upper(model, torch.nn.utils.rnn.pad_sequence(states, batch_first=True))

    def _forward_lower(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        with _only(model.model, slice(0, self.n_layers), torch.nn.Identity()):
            hidden: torch.Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    def _forward_upper(self, model: Any, states: torch.Tensor) -> torch.Tensor:
        with _only(model.model, slice(self.n_layers, None), model.model.norm):
            hidden: torch.Tensor = model.model(inputs_embeds=states, use_cache=False).last_hidden_state
        return hidden

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        # Some architectures scale their input or number their layers: those cannot be cut.
        ids = torch.arange(4, 12, device=model.device)[None]
        whole = model.model(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.equal(self._forward_upper(model, self._forward_lower(model, ids)), whole):
            raise TrainingError(
                f"{type(model).__name__} cannot be computed in two halves",
                hint="set frozen_layers to 0, or method to lora",
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
