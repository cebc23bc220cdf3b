"""AdamW on fp32 masters of low-precision weights: most updates are smaller than half a bf16 step and would be lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from smallfirst.training.config import TrainConfig

_KEPT = ("exp_avg", "exp_avg_sq", "step")


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019) on fp32 masters of low-precision parameters."""

    def __init__(self, params: Sequence[torch.nn.Parameter], config: TrainConfig) -> None:
        self.params = list(params)
        self.masters = [p.detach().float().clone() for p in self.params]
        groups = [
            {"params": [m for m in self.masters if m.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [m for m in self.masters if m.dim() < 2], "weight_decay": 0.0},
        ]
        self.clip_norm = config.clip_norm
        self.adam = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.learning_rate, betas=(0.9, 0.98), fused=True
        )

    @torch.no_grad()
    def gather(self) -> None:
        """Add the parameters' gradients to their masters' in fp32, and clear them."""
        for param, master in zip(self.params, self.masters, strict=True):
            if param.grad is not None:
                new = param.grad.float()
                master.grad = new if master.grad is None else master.grad.add_(new)
                param.grad = None

    def reduce(self) -> None:
        """Sum the gathered gradients over all processes."""
        for master in self.masters:
            if master.grad is None:  # this process had no row of the batch
                master.grad = torch.zeros_like(master)
            dist.all_reduce(master.grad)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the masters by the gathered gradients, then copy them back in the parameters' precision."""
        torch.nn.utils.clip_grad_norm_(self.masters, self.clip_norm)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()
        self.adam.zero_grad()
        self._copy_back()

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that the next step depends on, by name; the tensors are the live ones, not copies."""
        found = {}
        for i, master in enumerate(self.masters):
            found[f"{i}.master"] = master
            kept = self.adam.state.get(master, {})
            found |= {f"{i}.{name}": kept[name] for name in _KEPT if name in kept}
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        for i, master in enumerate(self.masters):
            master.copy_(state[f"{i}.master"])
            moments = {
                name: state[f"{i}.{name}"].to(master.device, copy=True) for name in _KEPT if f"{i}.{name}" in state
            }
            if moments:
                self.adam.state[master] = moments
        self._copy_back()

    @torch.no_grad()
    def _copy_back(self) -> None:
        for param, master in zip(self.params, self.masters, strict=True):
            param.copy_(master)
