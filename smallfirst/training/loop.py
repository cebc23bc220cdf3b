"""The training loop, read top to bottom: bf16 compute, fp32 master weights, loss on the answer's tokens only.

The loss of a step is the mean over the target tokens of its whole batch, however the batch is cut: into micro-batches
that fit into memory, or among processes that each take a part (torchrun). So neither changes what is learnt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from smallfirst.errors import TrainingError
from smallfirst.training.batches import Batch, Row, collate, epoch_batches, micro_batches
from smallfirst.training.config import TrainConfig, parse_duration
from smallfirst.training.optimiser import MasterAdamW


class Step(NamedTuple):
    """What one optimiser step did."""

    step: int
    """From 1."""
    epoch: float
    """Epochs done, fractional."""
    loss: float
    """Mean over target tokens, in nats."""
    learning_rate: float
    tokens: int
    """Real tokens seen so far, padding not counted."""
    tokens_per_s: float
    """Since the start, validation pauses not counted."""
    progress: float
    """Share of the run done, in [0, 1]."""
    ends_epoch: bool
    """True after the last step of an epoch and of the run: the time for an exam."""


class Fit:
    """A fine-tune under way: `steps()` moves the model in place, `state()` is all that the rest of it depends on."""

    def __init__(self, model: Any, rows: Sequence[Row], config: TrainConfig) -> None:
        self.model, self.rows, self.config = model, rows, config
        self.total, self.per_epoch = plan(rows, config)
        self.optimiser = MasterAdamW([p for p in model.parameters() if p.requires_grad], config)
        self.step, self.tokens, self.busy_s = 0, 0, 0.0

    def steps(self) -> Iterator[Step]:
        """Step after step to the end, from where the fit stands; the model is in evaluation mode between steps.

        Raises TrainingError when the loss stops being a number; the weights are then those before that step.
        """
        for batch in islice(endless_batches(self.rows, self.config), self.step, self.total):
            yield self._step(batch)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Tensors and figures from which `restore` goes on to the same weights, to the bit on one kind of processor."""
        tensors = {**self.optimiser.state(), "generator": torch.get_rng_state()}
        return tensors, {"step": self.step, "tokens": self.tokens, "busy_s": self.busy_s}

    def restore(self, tensors: dict[str, torch.Tensor], figures: dict[str, float]) -> None:
        """Nothing back; the fit stands where it stood when the state was taken."""
        self.optimiser.restore(tensors)
        torch.set_rng_state(tensors["generator"])
        self.step, self.tokens, self.busy_s = int(figures["step"]), int(figures["tokens"]), figures["busy_s"]

    def _step(self, rows: Sequence[Row]) -> Step:
        began = time.perf_counter()
        self.model.train()
        loss = accumulate(self.model, rows, self.config, self.optimiser)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} at step {self.step + 1}", hint="lower learning_rate")
        self.step += 1
        rate = rate_at(self.step, self.total, self.config)
        self.optimiser.step(rate)
        self.model.eval()
        self.tokens += sum(len(row.ids) - 1 for row in rows)
        self.busy_s += time.perf_counter() - began
        return Step(
            step=self.step,
            epoch=self.step / self.per_epoch,
            loss=loss,
            learning_rate=rate,
            tokens=self.tokens,
            tokens_per_s=self.tokens / self.busy_s,
            progress=self.step / self.total,
            ends_epoch=self.step % self.per_epoch == 0 or self.step == self.total,
        )


def accumulate(model: Any, rows: Sequence[Row], config: TrainConfig, optimiser: MasterAdamW) -> float:
    """Mean cross-entropy over the target tokens of all `rows`, in nats; its gradient is gathered in the optimiser.

    Under torch.distributed each process reads its part of the rows and all end with the same gradient.
    """
    n_targets = sum(len(row.ids) - row.n_prompt for row in rows)
    total = torch.zeros((), device=model.device)
    for part in micro_batches(_own(rows), config.micro_tokens or config.batch_tokens):
        loss = target_loss(model, collate(part)) / n_targets
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.gather()
        total += loss.detach()
    if dist.is_initialized():
        dist.all_reduce(total)
        optimiser.reduce()
    return float(total)


def target_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Sum of cross-entropies over the target tokens, in nats; the vocabulary is projected at target positions only."""
    device = model.device
    hidden = model.model(input_ids=batch.ids.to(device), use_cache=False).last_hidden_state
    row, position, token = batch.targets.to(device).unbind(1)
    logits = model.get_output_embeddings()(hidden[row, position])  # (n_targets, vocabulary)
    return F.cross_entropy(logits.float(), token, reduction="sum")


def rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Learning rate of step `step` (from 1) of `total`: linear warm-up, then a cosine."""
    warmup = max(1, round(config.warmup_share * total))
    if step <= warmup:
        return config.learning_rate * step / warmup
    done = (step - warmup) / max(1, total - warmup)
    floor = config.final_rate_share
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def plan(rows: Sequence[Row], config: TrainConfig) -> tuple[int, int]:
    """Steps in the whole run and steps in one epoch (of the first epoch's batches)."""
    duration = parse_duration(config.duration)
    first = epoch_batches(rows, batch_tokens=config.batch_tokens, seed=_epoch_seed(config, 0))
    per_epoch = len(first)
    tokens = sum(len(row.ids) - 1 for row in rows)
    total = {
        "ep": duration.amount * per_epoch,
        "ba": duration.amount,
        "tok": math.ceil(duration.amount / tokens * per_epoch),
    }[duration.unit]
    return max(1, total), per_epoch


def endless_batches(rows: Sequence[Row], config: TrainConfig) -> Iterator[list[Row]]:
    """Batches of epoch after epoch, each epoch in its own order."""
    epoch = 0
    while True:
        yield from epoch_batches(rows, batch_tokens=config.batch_tokens, seed=_epoch_seed(config, epoch))
        epoch += 1


def _own(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows of this process: every n-th of them."""
    return rows[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else rows


def _epoch_seed(config: TrainConfig, epoch: int) -> int:
    return config.seed * 100_003 + epoch
