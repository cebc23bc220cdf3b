"""The processes that train together, by torch.distributed: whose rows, and what the first process decides for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

R = TypeVar("R")


class Group(NamedTuple):
    """The processes of one training; a single one by default."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Group:
        """Return the group of the initialized torch.distributed processes; this process alone without any."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def leads(self) -> bool:
        """True in the one process that validates, logs and writes."""
        return self.rank == 0

    def own(self, rows: Sequence[R]) -> Sequence[R]:
        """Return this process's rows of a batch; none if there are fewer rows than processes."""
        return rows[self.rank :: self.size]

    def agree(self, value: float) -> float:
        """Return the first process's value in every process."""
        if self.size == 1:
            return value
        agreed = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(agreed, 0)
        return agreed.item()
