"""The loss of a step: the mean over the target tokens of its whole batch, however the batch is cut.

Cut into micro-batches that fit into memory, or among processes that each take a part (torchrun): neither changes what
is learnt. The vocabulary is projected at target positions only, which for short answers saves a fifth of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from smallfirst.training.batches import TokenizedRow, micro_batches
from smallfirst.training.config import TrainConfig
from smallfirst.training.forward import FrozenLayers, forward
from smallfirst.training.optimizer import MasterAdamW

LossFunction = Callable[[Any, Sequence[TokenizedRow]], torch.Tensor]
"""From a model and rows to the sum of the losses of their target tokens, in nats."""


def target_loss(model: Any, rows: Sequence[TokenizedRow], lower: FrozenLayers | None = None) -> torch.Tensor:
    """Sum of cross-entropies over the target tokens, in nats; the vocabulary is projected at target positions only.

    `lower` are the layers that do not move, if any.
    """
    states, tokens = forward(model, rows, lower)
    logits = model.get_output_embeddings()(states)  # (n_targets, vocabulary)
    return F.cross_entropy(logits.float(), tokens, reduction="sum")


def accumulate_gradient(
    model: Any,
    rows: Sequence[TokenizedRow],
    config: TrainConfig,
    optimiser: MasterAdamW,
    loss_of: LossFunction = target_loss,
) -> float:
    """Mean loss over the target tokens of all `rows`, in nats; its gradient is gathered in the optimiser.

    Under torch.distributed each process reads its part of the rows and all end with the same gradient.
    """
    n_targets = sum(len(row.ids) - row.n_prompt for row in rows)
    total = torch.zeros((), device=model.device)
    for part in micro_batches(_own(rows), config.micro_tokens or config.batch_tokens):
        loss = loss_of(model, part) / n_targets
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.gather()
        total += loss.detach()
    if dist.is_initialized():
        dist.all_reduce(total)
        optimiser.reduce()
    return float(total)


def _own(rows: Sequence[TokenizedRow]) -> Sequence[TokenizedRow]:
    """The rows of this process: every n-th of them."""
    return rows[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else rows
