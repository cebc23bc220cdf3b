"""Fit a causal model to the device that trains it: checkpointed layers, faster kernels, compiled layers."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from smallfirst.training.rms_norm import replace_norms


def use_fast_kernels(model: Any) -> None:
    """Replace parts of a model by faster ones of equal value: Liger's kernels on a GPU, our normalisation elsewhere."""
    if model.device.type == "cpu":
        replace_norms(model)
    elif model.device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # The loss is computed at target positions alone, by `causal_lm.target_loss`.
        _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)


def checkpoint_layers(model: Any) -> None:
    """Keep a layer's input alone for the backward pass, which computes the layer again (Chen et al. 2016)."""
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def compile_layers(model: Any) -> None:
    """Compile each layer at its first use, once for all lengths."""
    for layer in model.model.layers:
        layer.compile(dynamic=True)
