"""Low-rank adapters by peft: added before training, merged into the weights after it."""

from __future__ import annotations

import copy
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


def merge_adapters(model: Any) -> Any:
    """Return a copy with the adapters merged, in fp32 before rounding to bf16 once; without any, the model itself."""
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return model
    from peft.tuners.lora import LoraLayer

    whole = copy.deepcopy(model).float()
    for name, module in list(whole.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent = whole.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    whole = whole.to(torch.bfloat16)
    # peft marks the model as quantised or adapted in places that save_pretrained would follow.
    whole._hf_peft_config_loaded = False
    return whole
