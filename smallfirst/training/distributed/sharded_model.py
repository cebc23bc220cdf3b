"""A causal model whose weights, gradients and optimizer state are divided among the processes (PyTorch's FSDP2).

A layer's weights are gathered when it is computed and released afterwards; gradients are summed in fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from smallfirst.errors import ConfigError
from smallfirst.training.batches import TokenizedRow


class ShardedModel(torch.nn.Module):
    """The root of the sharded layers; what lies outside them (embedding, head) is gathered for a whole step."""

    def __init__(self, model: Any, n_processes: int) -> None:
        """Shard the model in place. Raise ConfigError if its weights have several types (4-bit bases)."""
        super().__init__()
        if len(types := {p.dtype for p in model.parameters()}) > 1:
            raise ConfigError(
                f"weights of {len(types)} types cannot be sharded", hint="method full or lora, or leave out --shard"
            )
        # Not a submodule: its weights are on the meta device, so they take no memory.
        self._skeletons = [copy.deepcopy(model, {id(p): _on_meta(p) for p in model.parameters()})]
        self.model = model
        options: dict[str, Any] = {
            "mesh": init_device_mesh(model.device.type, (n_processes,)),
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
        }
        for layer in model.model.layers:
            fully_shard(layer, **options)
        fully_shard(self, reshard_after_forward=False, **options)
        for part in self.modules():
            if isinstance(part, FSDPModule):  # the loss is divided by the targets of the whole batch: sum, not mean
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def forward(self, rows: Sequence[TokenizedRow], loss_function: Callable[..., torch.Tensor]) -> torch.Tensor:
        return loss_function(self.model, rows)

    @contextmanager
    def whole(self, *, keep: bool) -> Iterator[Any]:
        """Yield the model with all weights where `keep`, without any elsewhere; every process must come here."""
        made: dict[int, torch.nn.Parameter] = {}
        skeleton = self._skeletons[0]
        names = dict(self.model.named_parameters(remove_duplicate=False))
        for own in names.values():
            if id(own) not in made:
                full = own.detach().full_tensor()
                made[id(own)] = torch.nn.Parameter(full, requires_grad=False) if keep else _on_meta(full)
        try:
            _set(skeleton, {name: made[id(own)] for name, own in names.items()})
            yield skeleton
        finally:
            _set(skeleton, {name: _on_meta(made[id(own)]) for name, own in names.items()})


def _set(model: Any, params: dict[str, torch.nn.Parameter]) -> None:
    for name, param in params.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, param)


def _on_meta(param: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(param.detach().to("meta"), requires_grad=False)
