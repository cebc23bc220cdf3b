"""Read packed rows; keep the lowest layers fixed, their states of each row computed once and kept off the GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from smallfirst.errors import TrainingError
from smallfirst.models.local.token_batches import PackedRows, pack_rows
from smallfirst.training.batches import TokenizedRow, micro_batches

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
            packed = pack_rows([row.ids[:-1] for row in part])
            states = torch.split(self._read_lower(model, packed), packed.lengths)
            for at, own in zip(packed.order, states, strict=True):
                self._states[part[at].ids[:-1]] = own.to("cpu", copy=True)

    def read_upper(self, model: Any, packed: PackedRows) -> torch.Tensor:
        """Return the hidden states after the last layer (tokens, hidden) of packed rows given to `fill` before."""
        states = [self._states[tuple(own.tolist())] for own in torch.split(packed.ids, packed.lengths)]
        return self._read_upper(model, packed, torch.cat(states).to(model.device))

    def _read_lower(self, model: Any, packed: PackedRows) -> torch.Tensor:
        with _only(model.model, slice(0, self.n_layers), torch.nn.Identity()):
            return read_packed(model, packed)

    def _read_upper(self, model: Any, packed: PackedRows, states: torch.Tensor) -> torch.Tensor:
        with _only(model.model, slice(self.n_layers, None), model.model.norm):
            return read_packed(model, packed, states)

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        # Some architectures scale their input or number their layers: those cannot be cut.
        packed = pack_rows([range(4, 12)])
        halves = self._read_upper(model, packed, self._read_lower(model, packed))
        if not torch.equal(halves, read_packed(model, packed)):
            raise TrainingError(
                f"{type(model).__name__} cannot be computed in two halves",
                hint="set frozen_layers to 0, or method to lora",
            )


def read_packed(model: Any, packed: PackedRows, states: torch.Tensor | None = None) -> torch.Tensor:
    """Return the hidden states after each token of packed rows (tokens, hidden); `states` stand for the embeddings."""
    packed = packed.to(model.device)
    known = {"input_ids": packed.ids[None]} if states is None else {"inputs_embeds": states[None]}
    read = model.model(**known, position_ids=packed.positions[None], use_cache=False, packed=packed)
    hidden: torch.Tensor = read.last_hidden_state[0]
    return hidden


@torch.no_grad()
def require_isolated_rows(model: Any) -> None:
    """Raise TrainingError if packed rows could see one another in this model."""
    one, other = (read_packed(model, pack_rows([row, range(4, 12)]))[4:] for row in (range(4, 8), range(8, 12)))
    if not torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
        raise TrainingError(
            f"{type(model).__name__} cannot read rows packed behind one another",
            hint="take a base model whose attention follows transformers' attention interface",
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
