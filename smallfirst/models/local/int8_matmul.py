"""Linear layers with weights packed for the processor: in their own precision, or in int8 where that is faster.

oneDNN packs a bf16 matrix anew for every product unless it is given a packed one. int8 rounds (`int8_check`).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

INT8_MAX = 127
"""Largest signed byte whose negative is one too."""
UINT8_ZERO_POINT = 128
"""Zero among the unsigned bytes that the kernel takes on its left."""


class LinearOp(Protocol):
    """Rows times a matrix, plus a bias."""

    def __call__(self, rows: torch.Tensor, factor: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return products (n, outputs) of rows (n, inputs), which may be overwritten, and a factor (n, 1) or None."""


class PrepackedLinear:
    """A matrix in its own precision, packed in bf16 where the processor multiplies bf16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._dtype, self._bias = weight.dtype, bias
        self._packed = can_prepack(weight.dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._packed else weight

    def __call__(self, rows: torch.Tensor, factor: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        if factor is not None:
            rows = rows.mul_(factor)
        rows = rows.to(self._dtype)
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], ""), None
        return F.linear(rows, self._weight, self._bias), None


class Int8Linear:
    """A matrix of signed bytes with one scale an output; each row on its left has its own. 127 steps to the largest."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        weight = weight.float()
        self._scale = weight.abs().amax(dim=1).clamp_min_(torch.finfo(torch.float32).tiny) / INT8_MAX
        steps = (weight / self._scale[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(steps, None)
        self._zero = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = None if bias is None else bias.float()

    def __call__(self, rows: torch.Tensor, factor: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = rows.float()
        step = rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30).div_(INT8_MAX)
        # Signed bytes with the top bit flipped are unsigned ones with 128 added. PyTorch is faster at signed ones.
        octets = (rows / step).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(UINT8_ZERO_POINT)
        if factor is not None:
            step.mul_(factor)
        quantised = (octets, 1.0, UINT8_ZERO_POINT, self._weight, self._scale, self._zero, None, 1.0, 0)
        products = torch.ops.onednn.qlinear_pointwise(*quantised, torch.float32, "none", [], "")
        if self._bias is not None:
            return products.mul_(step).add_(self._bias), None
        return products, step


def can_prepack(dtype: torch.dtype) -> bool:
    """Return whether products with a packed matrix of this precision work on this machine."""
    if dtype != torch.bfloat16:
        return False
    try:
        supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return False
    return supported


def int8_supported() -> bool:
    """Return whether int8 products are fast on this machine (AVX512-VNNI) and right, as a small one shows."""
    vnni = getattr(torch.cpu, "_is_vnni_supported", None)
    if vnni is None or not vnni() or "avx512" not in torch.backends.cpu.get_cpu_capability().lower():
        return False
    weight = torch.arange(-96.0, 96.0).view(12, 16)
    rows = torch.arange(-24.0, 24.0).view(3, 16)
    try:
        products, step = Int8Linear(weight, None)(rows.clone(), None)
    except (AttributeError, RuntimeError):
        return False
    exact = rows @ weight.T
    return step is not None and bool(((products * step - exact).abs() <= 0.02 * exact.abs().max()).all())
