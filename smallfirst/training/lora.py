"""Low-rank adapters by peft: added before training."""

from __future__ import annotations

from typing import Any

import torch

from smallfirst.training.config import TrainConfig


def add_adapters(model: Any, config: TrainConfig) -> Any:
    """Return the model with LoRA (Hu et al. 2021) or DoRA (Liu et al. 2024) on all linear layers of its blocks."""
    import peft

    layers = model.model.layers
    linear = {name.rpartition(".")[2] for name, part in layers.named_modules() if isinstance(part, torch.nn.Linear)}
    adapters = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        use_dora=config.method == "dora",
        target_modules=sorted(linear),
        layers_to_transform=list(range(config.frozen_layers, len(model.model.layers)))
        if config.frozen_layers
        else None,
        task_type=peft.TaskType.CAUSAL_LM,
    )
    wrapped = peft.get_peft_model(model, adapters, autocast_adapter_dtype=False)
    return wrapped.base_model.model  # same object graph, without the wrapper's own forward
