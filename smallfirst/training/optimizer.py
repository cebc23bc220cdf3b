"""AdamW on fp32 masters of low-precision weights: most updates are smaller than half a bf16 step and would be lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

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
        """Sum the gathered gradients over all processes; the backward pass has summed those of sharded parameters."""
        whole = [master.grad for master in self.masters if master.grad is not None]
        sums = [dist.all_reduce(grad, async_op=True) for grad in whole if not hasattr(grad, "full_tensor")]
        for under_way in sums:
            under_way.wait()

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

    def restore(self, names: Collection[str], load_into: Callable[[Mapping[str, torch.Tensor]], None]) -> None:
        """Continue from a saved state: the names of its tensors, and what overwrites tensors by them."""
        for i, master in enumerate(self.masters):
            if f"{i}.step" in names:
                own = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
                self.adam.state[master] = {"step": torch.zeros((), device=master.device), **own}
        load_into(self.state())
        self._copy_back()

    @torch.no_grad()
    def _copy_back(self) -> None:
        for param, master in zip(self.params, self.masters, strict=True):
            param.copy_(master)
