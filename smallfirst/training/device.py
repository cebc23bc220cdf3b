"""Fit a causal model to the device that trains it: precision, checkpointed layers, faster kernels, compiled layers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from smallfirst.models.local import packed_rows


def use_fast_kernels(model: Any) -> None:
    """Replace parts of a model by faster ones of equal value: Liger's kernels on a GPU, our normalisation elsewhere."""
    if model.device.type == "cpu":
        replace_norms(model)
    elif model.device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # The loss is computed at target positions alone, by `causal_lm.target_loss`.
        _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)


def learn_in_fp32(model: Any) -> None:
    """Compute in fp32 from now on, but for what is inside `as_kept`."""
    _set_precision(model, torch.float32)
    model.learns_in_fp32 = True


@contextmanager
def as_kept(model: Any) -> Iterator[None]:
    """Inside the block the weights are as they will be written and served; afterwards exactly what they were."""
    if not getattr(model, "learns_in_fp32", False):
        yield
        return
    exact = [parameter.detach() for parameter in model.parameters()]
    _set_precision(model, torch.bfloat16)
    try:
        yield
    finally:
        for parameter, value in zip(model.parameters(), exact, strict=True):
            parameter.data = value


def _set_precision(model: Any, dtype: torch.dtype) -> None:
    for parameter in model.parameters():  # buffers, such as the frequencies of positions, stay in fp32
        parameter.data = parameter.data.to(dtype)


def checkpoint_layers(model: Any) -> None:
    """Keep a layer's input alone for the backward pass, which computes the layer again (Chen et al. 2016)."""
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def compile_layers(model: Any) -> None:
    """Compile each layer at its first use, once for all rows; attention, whose calls follow them, stays as it is."""
    apart = torch.compiler.disable(packed_rows.causal_attention)  # type: ignore[no-untyped-call]
    packed_rows.register(apart)
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)  # inside what `checkpoint_layers` computes again


class RMSNorm(torch.nn.Module):
    """The normalisation of Llama, Qwen and Mistral by PyTorch's fused layer one: theirs takes a seventh of a step.

    It shares the weight of the one that it stands for. A row followed by its negative has mean 0, so its layer
    normalisation is the root mean square one. Going back, layer normalisation takes out a mean of the gradient, which
    is put back.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Normalize.apply(states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return found


def replace_norms(model: Any) -> None:
    """Replace the normalisations of a model that RMSNorm computes alike."""
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if type(part).__name__.endswith("RMSNorm") and hasattr(part, "variance_epsilon"):
                own, probe = RMSNorm(part), torch.linspace(-1, 2, len(part.weight)).to(part.weight)
                if torch.allclose(own(probe), part(probe), atol=0.02, rtol=0.02):
                    setattr(parent, name, own)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        width = states.shape[-1]
        twice = torch.cat([states, -states], -1)
        both, _, factor = torch.native_layer_norm(twice, [2 * width], weight.float().repeat(2), None, eps)
        ctx.save_for_backward(states, weight, factor)  # factor (..., 1), fp32
        return both[..., :width].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        states, weight, factor = ctx.saved_tensors
        width, mean = states.shape[-1], torch.zeros_like(factor)
        of_states, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, states, [width], mean, factor, weight.float(), None, [True, True, False]
        )
        taken = (gradient @ weight)[..., None] * (factor / width)
        return of_states.add_(taken.to(of_states.dtype)), of_weight.to(weight.dtype), None
