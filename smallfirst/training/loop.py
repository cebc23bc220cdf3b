"""The training loop, read top to bottom: bf16 compute, fp32 master weights, loss on the answer's tokens only.

Why masters: at a rate of 2e-4 most AdamW updates are smaller than half a bf16 step and would be rounded away. Keeping
the weights in fp32 beside the bf16 copy costs 4 bytes a weight and gains several points of accuracy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from smallfirst.errors import TrainingError
from smallfirst.training.batches import Batch, Row, collate, epoch_batches
from smallfirst.training.config import TrainConfig, parse_duration


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
    def step(self, learning_rate: float) -> None:
        """Move the masters along the parameters' gradients, then copy them back in the parameters' precision."""
        for param, master in zip(self.params, self.masters, strict=True):
            master.grad = param.grad.float() if param.grad is not None else None
            param.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, self.clip_norm)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()
        for param, master in zip(self.params, self.masters, strict=True):
            param.copy_(master)


def batch_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the target tokens, in nats; the vocabulary is projected at target positions only."""
    device = model.device
    hidden = model.model(input_ids=batch.ids.to(device), use_cache=False).last_hidden_state
    row, position, token = batch.targets.to(device).unbind(1)
    logits = model.get_output_embeddings()(hidden[row, position])  # (n_targets, vocabulary)
    return F.cross_entropy(logits.float(), token)


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


def _epoch_seed(config: TrainConfig, epoch: int) -> int:
    return config.seed * 100_003 + epoch


def fit(
    model: Any,
    rows: Sequence[Row],
    config: TrainConfig,
    *,
    on_step: Callable[[Step], None],
    on_epoch: Callable[[int], None],
) -> None:
    """Fine-tune `model` in place. `on_epoch(n)` is called after each whole epoch and at the end.

    Raises TrainingError when the loss stops being a number.
    """
    total, per_epoch = plan(rows, config)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = MasterAdamW(trainable, config)
    model.train()
    tokens, busy_s, epoch_done = 0, 0.0, 0
    for step, batch_rows in zip(range(1, total + 1), endless_batches(rows, config), strict=False):
        began = time.perf_counter()
        batch = collate(batch_rows)
        loss = batch_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        rate = rate_at(step, total, config)
        optimiser.step(rate)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"the loss became {value} at step {step}", hint="lower learning_rate")
        tokens += batch.n_tokens
        busy_s += time.perf_counter() - began
        on_step(Step(step, step / per_epoch, value, rate, tokens, tokens / busy_s, step / total))
        if step % per_epoch == 0 or step == total:
            epoch_done += 1
            model.eval()
            on_epoch(epoch_done)
            model.train()
    model.eval()
