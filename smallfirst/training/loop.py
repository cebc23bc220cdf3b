"""The training loop, read top to bottom: a plan, batches of epoch after epoch, a step, a learning rate.

What a step does to its kind of model is the Study's: the loss, and how rows are put together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch

from smallfirst.errors import TrainingError
from smallfirst.training.backend import Backend
from smallfirst.training.config import TrainConfig, epoch_seed, parse_duration
from smallfirst.training.optimizer import MasterAdamW


class StepMetrics(NamedTuple):
    """What one optimiser step did."""

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
    """True after the last step of an epoch and of the run: the time for an exam."""


class TrainingLoop:
    """A fine-tune under way: `steps()` moves the model in place, `state()` is all that the rest of it depends on."""

    def __init__(self, study: Backend, model: Any, rows: Sequence[Any], config: TrainConfig) -> None:
        self.study, self.model, self.rows, self.config = study, model, rows, config
        self.total, self.per_epoch = count_steps(study, rows, config)
        self.optimiser = MasterAdamW([p for p in model.parameters() if p.requires_grad], config)
        self.step, self.tokens, self.busy_s = 0, 0, 0.0

    def steps(self) -> Iterator[StepMetrics]:
        """Step after step to the end, from where the fit stands; the model is in evaluation mode between steps.

        Raises TrainingError when the loss stops being a number; the weights are then those before that step.
        """
        for batch in islice(iterate_batches(self.study, self.rows, self.config), self.step, self.total):
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

    def _step(self, rows: Sequence[Any]) -> StepMetrics:
        began = time.perf_counter()
        self.model.train()
        loss = self.study.gradient(self.model, rows, self.config, self.optimiser)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} at step {self.step + 1}", hint="lower learning_rate")
        self.step += 1
        rate = learning_rate_at(self.step, self.total, self.config)
        self.optimiser.step(rate)
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
    """Learning rate of step `step` (from 1) of `total`: linear warm-up, then a cosine."""
    warmup = max(1, round(config.warmup_share * total))
    if step <= warmup:
        return config.learning_rate * step / warmup
    done = (step - warmup) / max(1, total - warmup)
    floor = config.final_rate_share
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def count_steps(study: Backend, rows: Sequence[Any], config: TrainConfig) -> tuple[int, int]:
    """Steps in the whole run and steps in one epoch (of the first epoch's batches)."""
    duration = parse_duration(config.duration)
    first = study.batches(rows, config, epoch_seed(config, 0))
    per_epoch = len(first)
    tokens = sum(len(row.ids) - 1 for row in rows)
    total = {
        "ep": duration.amount * per_epoch,
        "ba": duration.amount,
        "tok": math.ceil(duration.amount / tokens * per_epoch),
    }[duration.unit]
    return max(1, total), per_epoch


def iterate_batches(study: Backend, rows: Sequence[Any], config: TrainConfig) -> Iterator[list[Any]]:
    """Batches of epoch after epoch, each epoch in its own order."""
    epoch = 0
    while True:
        yield from study.batches(rows, config, epoch_seed(config, epoch))
        epoch += 1
