"""The weights of one layer as the packed engine wants them: joined, smoothed, rotary pairs side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from smallfirst.models.local.int8_matmul import LinearOp
from smallfirst.models.local.smoothquant import InputRanges, damping_scales, smoothing_scales

Affine = tuple[torch.Tensor, torch.Tensor | None]
"""Weight (outputs, inputs) and bias (outputs,)."""
LinearFactory = Callable[[torch.Tensor, "torch.Tensor | None"], LinearOp]


class RMSNorm(NamedTuple):
    """Root mean square normalisation."""

    weight: torch.Tensor
    """One per channel, fp32."""
    eps: float

    def factor(self, rows: torch.Tensor) -> torch.Tensor:
        """What each row is multiplied with besides the weights (n, 1)."""
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        factor: torch.Tensor = length.square_().div_(rows.shape[-1]).add_(self.eps).rsqrt_()
        return factor

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows, normalised, as new memory."""
        return (rows * self.factor(rows)).mul_(self.weight)


class PackedLayer(NamedTuple):
    """One layer's weights."""

    before: RMSNorm
    qkv: LinearOp
    of_heads: tuple[RMSNorm, RMSNorm] | None
    """Of each query and each key (Qwen3)."""
    out: LinearOp
    between: RMSNorm
    gate_up: LinearOp
    down: LinearOp


def pack_layer(layer: Any, make: LinearFactory, seen: InputRanges | None) -> PackedLayer:
    """One layer of a loaded model; smoothed by what was `seen` at its inputs, if anything was."""
    attention, mlp = layer.self_attn, layer.mlp
    order = rotary_pair_order(attention.head_dim)
    turned = [_reordered(part, order) for part in (attention.q_proj, attention.k_proj)]
    of_heads = None
    if hasattr(attention, "q_norm"):
        of_heads = (rms_norm(attention.q_norm, order), rms_norm(attention.k_norm, order))
    before, qkv = rms_norm(layer.input_layernorm), _joined(*turned, _weights(attention.v_proj))
    up, down = _weights(mlp.up_proj), _weights(mlp.down_proj)
    if seen:
        before, qkv = _smoothed(before, qkv, seen.qkv)
        up, down = _damped(up, down, damping_scales(seen.down))
    between, gate_up = rms_norm(layer.post_attention_layernorm), _joined(_weights(mlp.gate_proj), up)
    if seen:
        between, gate_up = _smoothed(between, gate_up, seen.gate_up)
    return PackedLayer(
        before=before,
        qkv=make(*qkv),
        of_heads=of_heads,
        out=make(*_weights(attention.o_proj)),
        between=between,
        gate_up=make(*gate_up),
        down=make(*down),
    )


def rotary_pair_order(head_dim: int) -> torch.Tensor:
    """The order in which the two halves of each rotary pair stand side by side."""
    return torch.arange(head_dim).view(2, -1).T.reshape(-1)


def _weights(linear: Any) -> Affine:
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def _reordered(linear: Any, order: torch.Tensor) -> Affine:
    """Weights and bias with the outputs of each head in this order."""
    weight, bias = _weights(linear)
    weight = weight.view(-1, len(order), weight.shape[1])[:, order].flatten(0, 1)
    return weight, None if bias is None else bias.view(-1, len(order))[:, order].flatten()


def _joined(*parts: Affine) -> Affine:
    """Several matrices of the same inputs as one; a missing bias among given ones is zero."""
    biases = [torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias for weight, bias in parts]
    given = any(bias is not None for _, bias in parts)
    return torch.cat([weight for weight, _ in parts]), torch.cat(biases) if given else None


def rms_norm(module: Any, order: torch.Tensor | None = None) -> RMSNorm:
    """A normalisation of a loaded model, its channels in this order."""
    weight = module.weight.detach().float()
    return RMSNorm(weight if order is None else weight[order], float(module.variance_epsilon))


def _smoothed(norm: RMSNorm, matrix: Affine, largest: torch.Tensor) -> tuple[RMSNorm, Affine]:
    """The same product of the normalised rows, with less of it in the rows and more in the weights, or the reverse."""
    weight, bias = matrix
    by = smoothing_scales(weight, largest)
    return RMSNorm(norm.weight / by, norm.eps), (weight.float() * by, bias)


def _damped(up: Affine, down: Affine, by: torch.Tensor) -> tuple[Affine, Affine]:
    """The same two products in a row with what is between them divided by `by`."""
    weight, bias = up
    after, of_after = down
    return (weight.float() / by[:, None], None if bias is None else bias.float() / by), (after.float() * by, of_after)
