"""The processes that train together: which batch rows are whose, and what the first process decides for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from smallfirst.training.batches import TokenizedRow, micro_batches


class Group(NamedTuple):
    """The processes of one training; a single one by default."""

    rank: int = 0
    size: int = 1
    shard: bool = False
    """Weights, gradients and optimizer state are divided among the processes."""

    @classmethod
    def joined(cls, *, shard: bool = False) -> Group:
        """Return the group of the initialized torch.distributed processes; this process alone without any."""
        return cls(dist.get_rank(), dist.get_world_size(), shard) if dist.is_initialized() else cls()

    @property
    def leads(self) -> bool:
        """True in the one process that validates, logs and writes."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """Return the first process's value in every process."""
        if self.size == 1:
            return value
        agreed = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(agreed, 0)
        return agreed.item()

    def wait(self) -> None:
        """Return once every process has come here."""
        self.agree(0)


def own_parts(rows: Sequence[TokenizedRow], max_tokens: int) -> list[tuple[list[TokenizedRow], float]]:
    """Return this process's micro-batches of a batch, each with the weight of its loss.

    Every process reads equally often, since sharded weights are gathered by all at once: one with fewer micro-batches
    reads a row again at weight 0.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    of_all = [micro_batches(rows[start::size], max_tokens) for start in range(size)]
    missing = max(map(len, of_all)) - len(of_all[rank])
    return [(part, 1.0) for part in of_all[rank]] + [([rows[0]], 0.0)] * missing


def loss_of(model: Any, rows: Sequence[TokenizedRow], loss_function: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Return `loss_function(model, rows)`; for a sharded model from within its forward pass, which gathers weights."""
    loss: torch.Tensor = model(rows, loss_function) if hasattr(model, "whole") else loss_function(model, rows)
    return loss


@contextmanager
def whole_model(model: Any, *, keep: bool) -> Iterator[Any]:
    """Yield the model itself, or of a sharded one what `ShardedModel.whole` does."""
    if hasattr(model, "whole"):
        with model.whole(keep=keep) as plain:
            yield plain
    else:
        yield model
