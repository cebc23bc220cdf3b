"""The training loop: count the steps, draw batches epoch after epoch, step, set the learning rate; checkpoints.

AdamW works on fp32 masters of low-precision weights: most updates are smaller than half a bf16 step and would be lost.
Several processes may train together, by torch.distributed: each computes its part of a batch, the first one decides.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from smallfirst.base.errors import TrainingError
from smallfirst.base.files import write_atomically
from smallfirst.training.config import Precision, R, TrainConfig, epoch_seed, parse_duration
from smallfirst.training.precision import MEASURED_TOKENS, ChosenPrecision

_KEPT = ("exp_avg", "exp_avg_sq", "step")
MAX_TIME_SHARE = 0.03
"""Share of the time that writing checkpoints may take."""
_STATE, _TENSORS = "state.json", "state.safetensors"


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


class _SavedCheckpoint(NamedTuple):
    """A complete checkpoint in its folder."""

    place: Path
    figures: dict[str, Any]

    def names(self) -> set[str]:
        with safe_open(self.place / _TENSORS, framework="pt") as file:
            return set(file.keys())

    @torch.no_grad()
    def load_into(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the tensors by those of the same names, one after the other."""
        with safe_open(self.place / _TENSORS, framework="pt") as file:
            for name, tensor in tensors.items():
                tensor.copy_(file.get_tensor(name))


class CheckpointStore:
    """The checkpoints of one run: folders, complete once state.json exists; the newest complete one counts."""

    def __init__(self, folder: Path, *, least_s: float = 60) -> None:
        self.folder, self.least_s = folder, least_s
        self._next_at = time.monotonic() + least_s

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next_at

    def write(self, step: int, tensors: Mapping[str, torch.Tensor], figures: dict[str, Any]) -> None:
        """Write a checkpoint, `figures` as JSON. On OSError the one before stays."""
        began = time.monotonic()
        place = self.folder / f"step-{step}"
        shutil.rmtree(place, ignore_errors=True)
        try:
            with whole_or_gone(place):
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / _TENSORS)
                with (place / _TENSORS).open("rb") as file:
                    os.fsync(file.fileno())
                write_atomically(place / _STATE, json.dumps(figures).encode())
        finally:
            now = time.monotonic()
            self._next_at = now + max(self.least_s, (now - began) / MAX_TIME_SHARE)
        for other in self.folder.glob("step-*"):
            if other != place:
                shutil.rmtree(other, ignore_errors=True)

    def latest(self) -> _SavedCheckpoint | None:
        complete = [path.parent for path in self.folder.glob(f"step-*/{_STATE}")]
        place = max(complete, key=lambda place: int(place.name.removeprefix("step-")), default=None)
        if place is None:
            return None
        return _SavedCheckpoint(place, json.loads((place / _STATE).read_text(encoding="utf-8")))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def whole_or_gone(folder: Path) -> Iterator[None]:
    """Make a folder for what the block writes, and remove it if the block fails. Raise OSError for a full disk."""
    try:
        folder.mkdir(parents=True)
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise (OSError(str(error)) if isinstance(error, SafetensorError) else error) from None


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019) on fp32 masters of low-precision parameters; one in fp32 is its own master.

    Of a parameter with `trained_rows` (sorted, int64), whose gradients are sparse, these rows are trained alone.
    """

    def __init__(self, params: Sequence[torch.nn.Parameter], config: TrainConfig) -> None:
        self.params = list(params)
        self.rows: list[torch.Tensor | None] = [getattr(p, "trained_rows", None) for p in self.params]
        self.masters = [
            p.detach().float() if rows is None else p.detach()[rows].float()
            for p, rows in zip(self.params, self.rows, strict=True)
        ]
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
        for param, master, rows in zip(self.params, self.masters, self.rows, strict=True):
            if param.grad is not None:
                new = param.grad.float()
                if rows is not None:
                    at = torch.searchsorted(rows, new._indices()[0])
                    new = torch.zeros_like(master).index_add_(0, at, new._values())
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

    def restore(self, saved: _SavedCheckpoint) -> None:
        names = saved.names()
        for i, master in enumerate(self.masters):
            if f"{i}.step" in names:
                own = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
                self.adam.state[master] = {"step": torch.zeros((), device=master.device), **own}
        saved.load_into(self.state())
        self._copy_back()

    @torch.no_grad()
    def _copy_back(self) -> None:
        for param, master, rows in zip(self.params, self.masters, self.rows, strict=True):
            if rows is not None:
                param.index_copy_(0, rows, master.to(param.dtype))
            elif param.dtype != master.dtype:
                param.copy_(master)


class Backend(Protocol):
    """How a kind of model trains. Rows may be of any type that has `ids`."""

    def load(self, base: Path, config: TrainConfig) -> tuple[Any, Any]:
        """Return model and tokenizer from the base model's folder; parameters to train require a gradient."""

    def begin(
        self, model: Any, rows: Sequence[Any], config: TrainConfig, began_in: Precision | None = None
    ) -> ChosenPrecision:
        """Prepare the model once before its first step; return the precision that it learns in.

        That is what the run `began_in` if it goes on, else the faster one.
        """

    def batches(self, rows: Sequence[Any], config: TrainConfig, seed: int) -> list[list[Any]]:
        """Return one epoch: all rows in batches, in an order drawn from `seed`."""

    def gradient(self, model: Any, rows: Sequence[Any], config: TrainConfig, optimizer: MasterAdamW) -> float:
        """Return the loss of a step in nats; its gradient is added to the optimizer."""

    def save(self, model: Any, tokenizer: Any, folder: Path) -> str:
        """Write weights and tokenizer into the empty `folder`; return the fingerprint of the weights."""


class StepMetrics(NamedTuple):
    """What one optimizer step did."""

    step: int
    epoch: float
    """Epochs done, fractional."""
    loss: float
    """Of the step's batch, in nats; for a causal model the mean over target tokens."""
    learning_rate: float
    tokens: int
    """Of the rows trained on so far, prompts and answers without padding; all but the last token of each row."""
    tokens_per_s: float
    """`tokens` over the time of the steps, optimizer included; validation and checkpoints not."""
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

    def restore(self, saved: _SavedCheckpoint, figures: dict[str, float]) -> None:
        """Continue from a checkpoint that holds the tensors of `state`, and from its figures."""
        self.optimizer.restore(saved)
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


def epoch_batches(rows: Sequence[R], *, batch_tokens: int, seed: int) -> list[list[R]]:
    """Return all rows in batches of at most `batch_tokens` tokens, padding included, in an order drawn from `seed`."""
    draw = random.Random(seed)
    noisy = sorted(rows, key=lambda row: len(row.ids) * draw.uniform(0.9, 1.1))
    batches = micro_batches(noisy, batch_tokens)
    draw.shuffle(batches)
    return batches


def measured_rows(batch: Sequence[R]) -> Sequence[R]:
    """Return rows of a batch, about MEASURED_TOKENS of them, on which precisions are compared."""
    return batch[: max(1, len(batch) * MEASURED_TOKENS // sum(len(row.ids) for row in batch))]


def micro_batches(rows: Sequence[R], max_tokens: int) -> list[list[R]]:
    """Return the rows, in order, in parts of at most `max_tokens` tokens, padding included; a longer row is alone."""
    parts: list[list[R]] = []
    width = 0
    for row in rows:
        wider = max(width, len(row.ids) - 1)
        if parts and wider * (len(parts[-1]) + 1) <= max_tokens:
            parts[-1].append(row)
            width = wider
        else:
            parts.append([row])
            width = len(row.ids) - 1
    return parts
