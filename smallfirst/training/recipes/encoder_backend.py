"""What encoders that are fine-tuned whole have in common.

They learn in bf16, or in fp32 where the processor is faster so, and are judged in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from smallfirst.training.batches import epoch_batches
from smallfirst.training.config import TrainConfig
from smallfirst.training.estimates.hardware import training_dtype
from smallfirst.training.loop import MasterAdamW


class EncoderBackend:
    """A Backend whose model has the encoder as `body`; a subclass says how it is loaded and saved, and its loss."""

    def begin(self, model: Any, rows: Sequence[Any], config: TrainConfig) -> None:
        model.body.to(training_dtype())

    def batches(self, rows: Sequence[Any], config: TrainConfig, seed: int) -> list[list[Any]]:
        return epoch_batches(rows, batch_tokens=config.batch_tokens, seed=seed)

    def gradient(self, model: Any, rows: Sequence[Any], config: TrainConfig, optimizer: MasterAdamW) -> float:
        loss = self.loss(model, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.gather()
        return loss.item()

    def loss(self, model: Any, rows: Sequence[Any]) -> torch.Tensor:
        """Return the mean loss of a batch, in nats."""
        raise NotImplementedError


@contextmanager
def as_served(model: Any) -> Iterator[None]:
    """Compute in fp32 inside the block, as the model will be served."""
    model.body.float()
    yield
    model.body.to(training_dtype())
