"""How a kind of model learns: loading, batches, the gradient of a step, saving. The loop and the run know no more.

A causal model, read or written out, learns here; a sentence encoder in `contrastive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from smallfirst.models.local.weights import load_causal, weights_fingerprint
from smallfirst.training.batches import TokenizedRow, epoch_batches
from smallfirst.training.config import TrainConfig
from smallfirst.training.forward import FrozenLayers
from smallfirst.training.lora import add_adapters, merge_adapters
from smallfirst.training.loss import accumulate_gradient, target_loss
from smallfirst.training.optimizer import MasterAdamW


class Backend(Protocol):
    """How a kind of model learns. What a row is, beyond its `ids`, is its own affair."""

    def load(self, base: Path, config: TrainConfig) -> tuple[Any, Any]:
        """Model and tokenizer from the base model's folder; parameters that may move require a gradient."""
        ...

    def begin(self, model: Any, rows: Sequence[Any], config: TrainConfig) -> None:
        """Nothing back; whatever is to be done to the model once before its first step."""
        ...

    def batches(self, rows: Sequence[Any], config: TrainConfig, seed: int) -> list[list[Any]]:
        """One epoch: all rows in batches, in an order drawn from `seed`."""
        ...

    def gradient(self, model: Any, rows: Sequence[Any], config: TrainConfig, optimiser: MasterAdamW) -> float:
        """The loss of a step in nats; its gradient is gathered in the optimiser."""
        ...

    def save(self, model: Any, tokenizer: Any, folder: Path) -> str:
        """The fingerprint of the weights, which with the tokenizer are now in `folder`, an empty one."""
        ...


class CausalBackend:
    """A causal model: next-token loss on the answer's tokens, every weight, the upper layers or adapters."""

    lower: FrozenLayers | None = None

    def load(self, base: Path, config: TrainConfig) -> tuple[Any, Any]:
        """Model and tokenizer, with adapters if the method wants them, lower layers frozen if it wants that."""
        model, tokenizer = load_causal(base)
        if config.frozen_layers:
            self.lower = FrozenLayers(model, config.frozen_layers)
            still = [model.get_input_embeddings(), *model.model.layers[: config.frozen_layers]]
            for part in still:
                part.requires_grad_(False)
        return (model if config.method == "full" else add_adapters(model, config)), tokenizer

    def begin(self, model: Any, rows: Sequence[TokenizedRow], config: TrainConfig) -> None:
        """Nothing back; what frozen layers make of the rows is computed."""
        if self.lower is not None:
            self.lower.fill(model, rows)

    def batches(self, rows: Sequence[TokenizedRow], config: TrainConfig, seed: int) -> list[list[TokenizedRow]]:
        """Rows of similar length together."""
        return epoch_batches(rows, batch_tokens=config.batch_tokens, seed=seed)

    def gradient(self, model: Any, rows: Sequence[TokenizedRow], config: TrainConfig, optimiser: MasterAdamW) -> float:
        """Mean loss over the target tokens."""
        return accumulate_gradient(model, rows, config, optimiser, self.loss)

    def loss(self, model: Any, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        """Sum of cross-entropies over the rows' target tokens, in nats."""
        return target_loss(model, rows, self.lower)

    def save(self, model: Any, tokenizer: Any, folder: Path) -> str:
        """Adapters are folded into the weights first."""
        whole = merge_adapters(model)
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return weights_fingerprint(whole)
