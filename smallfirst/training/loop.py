"""The training loop: count the steps, draw batches epoch after epoch, step, set the learning rate.

AdamW works on fp32 masters of low-precision weights: most updates are smaller than half a bf16 step and would be lost.
Several processes may train together, by torch.distributed: each computes its part of a batch, the first one decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist

from smallfirst.base.errors import TrainingError
from smallfirst.training.checkpoint import SavedCheckpoint
from smallfirst.training.config import TrainConfig, epoch_seed, parse_duration

R = TypeVar("R")
_KEPT = ("exp_avg", "exp_avg_sq", "step")


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
        """Sum the gathered gradients over all processes; one that had no rows adds zeros."""
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        for under_way in [dist.all_reduce(master.grad, async_op=True) for master in self.masters]:
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


class Backend(Protocol):
    """How a kind of model trains. Rows may be of any type that has `ids`."""

    def load(self, base: Path, config: TrainConfig) -> tuple[Any, Any]:
        """Return model and tokenizer from the base model's folder; parameters to train require a gradient."""

    def begin(self, model: Any, rows: Sequence[Any], config: TrainConfig) -> None:
        """Prepare the model once before its first step."""

    def batches(self, rows: Sequence[Any], config: TrainConfig, seed: int) -> list[list[Any]]:
        """Return one epoch: all rows in batches, in an order drawn from `seed`."""

    def gradient(self, model: Any, rows: Sequence[Any], config: TrainConfig, optimizer: MasterAdamW) -> float:
        """Return the loss of a step in nats; its gradient is added to the optimizer."""

    def save(self, model: Any, tokenizer: Any, folder: Path) -> str:
        """Write weights and tokenizer into the empty `folder`; return the fingerprint of the weights."""


class StepMetrics(NamedTuple):
    """What one optimizer step did."""

    step: int
    """From 1."""
    epoch: float
    """Epochs done, fractional."""
    loss: float
    """Of the step's batch, in nats; for a causal model the mean over target tokens."""
    learning_rate: float
    tokens: int
    """Real tokens seen so far, padding not counted."""
    tokens_per_s: float
    """Since the start, validation pauses not counted."""
    progress: float
    """Share of the run done, in [0, 1]."""
    ends_epoch: bool
    """True after the last step of an epoch and of the run: the time to validate."""


class TrainingLoop:
    """A fine-tune in progress: `steps()` changes the model in place, `state()` is all that the rest depends on."""

    def __init__(self, backend: Backend, model: Any, rows: Sequence[Any], config: TrainConfig) -> None:
        self.backend, self.model, self.rows, self.config = backend, model, rows, config
        self.total, self.per_epoch = count_steps(backend, rows, config)
        self.optimizer = MasterAdamW([p for p in model.parameters() if p.requires_grad], config)
        self.step, self.tokens, self.busy_s = 0, 0, 0.0

    def steps(self) -> Iterator[StepMetrics]:
        """Yield the metrics of each step. Raise TrainingError before updating if the loss is no number."""
        batches = (
            batch
            for epoch in count()
            for batch in self.backend.batches(self.rows, self.config, epoch_seed(self.config, epoch))
        )
        for batch in islice(batches, self.step, self.total):
            yield self._step(batch)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Return tensors and numbers from which `restore` continues to the same weights, bit for bit on one CPU."""
        tensors = {**self.optimizer.state(), "generator": torch.get_rng_state()}
        return tensors, {"step": self.step, "tokens": self.tokens, "busy_s": self.busy_s}

    def restore(self, saved: SavedCheckpoint, figures: dict[str, float]) -> None:
        """Continue from a checkpoint that holds the tensors of `state`, and from its figures."""
        self.optimizer.restore(saved.names(), saved.load_into)
        generator = torch.get_rng_state()
        saved.load_into({"generator": generator})
        torch.set_rng_state(generator)
        self.step, self.tokens, self.busy_s = int(figures["step"]), int(figures["tokens"]), figures["busy_s"]

    def _step(self, rows: Sequence[Any]) -> StepMetrics:
        began = time.perf_counter()
        self.model.train()
        loss = self.backend.gradient(self.model, rows, self.config, self.optimizer)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} at step {self.step + 1}", hint="lower learning_rate")
        self.step += 1
        rate = learning_rate_at(self.step, self.total, self.config)
        self.optimizer.step(rate)
        self.model.eval()
        self.tokens += sum(len(row.ids) - 1 for row in rows)
        self.busy_s += time.perf_counter() - began
        return StepMetrics(
            step=self.step,
            epoch=self.step / self.per_epoch,
            loss=loss,
            learning_rate=rate,
            tokens=self.tokens,
            tokens_per_s=self.tokens / self.busy_s,
            progress=self.step / self.total,
            ends_epoch=self.step % self.per_epoch == 0 or self.step == self.total,
        )


def learning_rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Return the learning rate of step `step` (from 1) of `total`: linear warm-up, then a cosine."""
    warmup = max(1, round(config.warmup_share * total))
    if step <= warmup:
        return config.learning_rate * step / warmup
    done = (step - warmup) / max(1, total - warmup)
    floor = config.final_rate_share
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def count_steps(backend: Backend, rows: Sequence[Any], config: TrainConfig) -> tuple[int, int]:
    """Return the steps of the whole run and of one epoch (those of the first epoch's batches)."""
    duration = parse_duration(config.duration)
    per_epoch = len(backend.batches(rows, config, epoch_seed(config, 0)))
    tokens = sum(len(row.ids) - 1 for row in rows)
    total = {
        "ep": duration.amount * per_epoch,
        "ba": duration.amount,
        "tok": math.ceil(duration.amount / tokens * per_epoch),
    }[duration.unit]
    return max(1, total), per_epoch
