"""Train a causal language model: loading, the forward pass, the loss and its gradient, saving.

The loss of a step is the mean over the target tokens of its whole batch, however the batch is cut. The vocabulary is
projected at target positions only, and a prefix common to all rows of a batch is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from smallfirst.models.local.kv_cache import cache_argument
from smallfirst.models.local.weights import load_causal, weights_fingerprint
from smallfirst.training.batches import Batch, TokenizedRow, collate, epoch_batches, micro_batches
from smallfirst.training.config import TrainConfig
from smallfirst.training.frozen_layers import FrozenLayers
from smallfirst.training.lora import add_adapters, merge_adapters
from smallfirst.training.optimizer import MasterAdamW

MIN_SHARED_PREFIX_TOKENS = 8
"""A shorter common prefix saves less than computing it apart costs."""

LossFunction = Callable[[Any, Sequence[TokenizedRow]], torch.Tensor]
"""From a model and rows to the sum of the losses of their target tokens, in nats."""


class CausalBackend:
    """The Backend of causal models: next-token loss on the answer's tokens; every weight, upper layers or adapters."""

    frozen: FrozenLayers | None = None

    def load(self, base: Path, config: TrainConfig) -> tuple[Any, Any]:
        model, tokenizer = load_causal(base)
        if config.frozen_layers:
            self.frozen = FrozenLayers(model, config.frozen_layers)
        return (model if config.method == "full" else add_adapters(model, config)), tokenizer

    def begin(self, model: Any, rows: Sequence[TokenizedRow], config: TrainConfig) -> None:
        if self.frozen is not None:
            self.frozen.fill(model, rows)

    def batches(self, rows: Sequence[TokenizedRow], config: TrainConfig, seed: int) -> list[list[TokenizedRow]]:
        return epoch_batches(rows, batch_tokens=config.batch_tokens, seed=seed)

    def gradient(self, model: Any, rows: Sequence[TokenizedRow], config: TrainConfig, optimizer: MasterAdamW) -> float:
        return accumulate_gradient(model, rows, config, optimizer, self.loss)

    def loss(self, model: Any, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        return target_loss(model, rows, self.frozen)

    def save(self, model: Any, tokenizer: Any, folder: Path) -> str:
        whole = merge_adapters(model)
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return weights_fingerprint(whole)


class TargetStates(NamedTuple):
    """Hidden states before each target token of a batch (n, hidden), and those tokens (n,)."""

    states: torch.Tensor
    tokens: torch.Tensor


def target_loss(model: Any, rows: Sequence[TokenizedRow], frozen: FrozenLayers | None = None) -> torch.Tensor:
    """Return the sum of the cross-entropies over the target tokens, in nats."""
    states, tokens = forward(model, rows, frozen)
    logits = model.get_output_embeddings()(states)  # (n_targets, vocabulary)
    return F.cross_entropy(logits.float(), tokens, reduction="sum")


def accumulate_gradient(
    model: Any,
    rows: Sequence[TokenizedRow],
    config: TrainConfig,
    optimizer: MasterAdamW,
    loss_function: LossFunction = target_loss,
) -> float:
    """Return the mean loss over the targets of `rows`, in nats; each distributed process computes its part."""
    own = rows[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else rows
    n_targets = sum(len(row.ids) - row.n_prompt for row in rows)
    total = torch.zeros((), device=model.device)
    for part in micro_batches(own, config.micro_tokens or config.batch_tokens):
        loss = loss_function(model, part) / n_targets
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.gather()
        total += loss.detach()
    if dist.is_initialized():
        dist.all_reduce(total)
        optimizer.reduce()
    return float(total)


def forward(model: Any, rows: Sequence[TokenizedRow], frozen: FrozenLayers | None = None) -> TargetStates:
    """Return the hidden states from which the rows' targets are predicted."""
    batch = collate(rows)
    row, position, token = batch.targets.to(model.device).unbind(1)
    if frozen is not None:
        hidden, n_shared = frozen.forward_upper(model, rows), 0
    else:
        n_shared = shared_prefix_tokens(rows)
        hidden = forward_with_shared_prefix(model, batch, n_shared) if n_shared else forward_rows(model, batch)
    return TargetStates(hidden[row, position - n_shared], token)


def shared_prefix_tokens(rows: Sequence[TokenizedRow]) -> int:
    """Return how many tokens all rows begin with, before the first target is predicted; 0 if too few to pay off."""
    if len(rows) < 2:
        return 0
    limit = min(row.n_prompt for row in rows) - 1
    if limit < MIN_SHARED_PREFIX_TOKENS:
        return 0
    first, last = min(row.ids[:limit] for row in rows), max(row.ids[:limit] for row in rows)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=True)) if a != b), limit)
    return n if n >= MIN_SHARED_PREFIX_TOKENS else 0


def forward_rows(model: Any, batch: Batch) -> torch.Tensor:
    """Return the hidden states after each token of the batch (rows, width, hidden)."""
    hidden: torch.Tensor = model.model(input_ids=batch.ids.to(model.device), use_cache=False).last_hidden_state
    return hidden


def forward_with_shared_prefix(model: Any, batch: Batch, n_shared: int) -> torch.Tensor:
    """Return the hidden states after the shared prefix (rows, width − n_shared, hidden)."""
    from transformers import DynamicCache

    ids, name = batch.ids.to(model.device), cache_argument(model)
    cache: Any = DynamicCache()  # its layers carry no types
    model.model(input_ids=ids[:1, :n_shared], use_cache=True, **{name: cache})
    for layer in cache.layers:  # every row attends to it, kept once
        layer.keys = layer.keys.expand(len(ids), -1, -1, -1)
        layer.values = layer.values.expand(len(ids), -1, -1, -1)
    hidden: torch.Tensor = model.model(input_ids=ids[:, n_shared:], use_cache=True, **{name: cache}).last_hidden_state
    return hidden
