"""SmoothQuant: channels that run large are scaled down before a product, and their weights up (Xiao et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

MAX_PROMPTS = 40
"""Prompts that are measured."""
DAMPING = 0.25
"""Exponent by which channels above the median are damped before the last product of a layer."""
MIN_INPUT, MIN_WEIGHT = 1e-3, 1e-4
"""Channels below these count as this large."""


class InputRanges(NamedTuple):
    """Largest absolute entry of each channel (channels,) at the inputs of a layer's products."""

    qkv: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@torch.inference_mode()
def measure_input_ranges(model: Any, prompts: Sequence[Sequence[int]]) -> list[InputRanges]:
    """Return each layer's ranges without the first token, whose entries are a thousand times larger."""
    layers = model.model.layers
    seen = [[torch.zeros((), dtype=torch.float32)] * 3 for _ in layers]
    hooks = [
        part.register_forward_pre_hook(_watch(seen[at], which))
        for at, layer in enumerate(layers)
        for which, part in enumerate((layer.self_attn.q_proj, layer.mlp.gate_proj, layer.mlp.down_proj))
    ]
    try:
        for ids in prompts[:MAX_PROMPTS]:
            model.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [InputRanges(*largest) for largest in seen]


def smoothing_scales(weight: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Return the divisor of each input channel of `weight` (outputs, inputs) that makes both sides equally large."""
    inputs = largest.clamp(min=MIN_INPUT)
    weights = weight.float().abs().amax(dim=0).clamp_(min=MIN_WEIGHT)
    return (inputs / weights).sqrt_()


def damping_scales(largest: torch.Tensor) -> torch.Tensor:
    """Return the divisor of each channel: 1 up to the median channel, a gentle power of the excess above it."""
    return (largest / largest.median().clamp(min=MIN_INPUT)).clamp_(min=1).pow_(DAMPING)


def _watch(largest: list[torch.Tensor], which: int) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    def watch(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0][:, 1:].float().abs().flatten(0, 1)
        if len(rows):
            largest[which] = torch.maximum(largest[which], rows.amax(dim=0))

    return watch
