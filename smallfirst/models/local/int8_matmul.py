"""Weight matrices made ready to multiply: as they are, or in eight bits where that is faster.

oneDNN packs a bf16 matrix anew for every product unless it is handed over packed; for one short request that is most
of the time. In eight bits a product moves half the bytes and does twice the multiplications a cycle (AVX512-VNNI). The
price is a copy of the matrix in the machine's own layout, and in eight bits a rounding that has to be checked on rows
(`models.quantised`).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

INT8_MAX = 127
"""Largest step of a signed byte that has a negative twin."""
UINT8_ZERO_POINT = 128
"""Zero among the unsigned bytes that the product wants on its left."""


class LinearOp(Protocol):
    """Rows times a matrix."""

    def __call__(self, rows: torch.Tensor, factor: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Products (n, outputs), and the factor (n, 1) that each still has to be multiplied with; None: none.

        rows (n, inputs) stand for themselves times `factor`; they may be overwritten.
        """


class PrepackedLinear:
    """A matrix in its own precision. Packed in bf16 where the processor multiplies bf16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Of `weight` (outputs, inputs) and `bias` (outputs,)."""
        self._dtype, self._bias = weight.dtype, bias
        self._packed = can_prepack(weight.dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._packed else weight

    def __call__(self, rows: torch.Tensor, factor: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See Product."""
        if factor is not None:
            rows = rows.mul_(factor)
        rows = rows.to(self._dtype)
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], ""), None
        return F.linear(rows, self._weight, self._bias), None


class Int8Linear:
    """A matrix of signed bytes with a scale an output; each row of the other side gets its own scale when it comes.

    Both are symmetric and exact to half a step: the largest entry of a row, or of an output's weights, is 127 steps.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Of `weight` (outputs, inputs) and `bias` (outputs,)."""
        weight = weight.float()
        self._scale = weight.abs().amax(dim=1).clamp_min_(torch.finfo(torch.float32).tiny) / INT8_MAX
        steps = (weight / self._scale[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(steps, None)
        self._zero = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = None if bias is None else bias.float()

    def __call__(self, rows: torch.Tensor, factor: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See Product."""
        rows = rows.float()
        step = rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30).div_(INT8_MAX)
        # Signed bytes with the top bit turned over are unsigned ones with 128 added. PyTorch is faster at signed ones.
        octets = (rows / step).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(UINT8_ZERO_POINT)
        if factor is not None:
            step.mul_(factor)
        products = torch.ops.onednn.qlinear_pointwise(
            octets,
            1.0,
            UINT8_ZERO_POINT,
            self._weight,
            self._scale,
            self._zero,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        if self._bias is not None:
            return products.mul_(step).add_(self._bias), None
        return products, step


def can_prepack(dtype: torch.dtype) -> bool:
    """Whether products with a packed matrix of this precision work here."""
    if dtype != torch.bfloat16:
        return False
    try:
        supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return False
    return supported


def int8_supported() -> bool:
    """Whether products of bytes are fast here (AVX512-VNNI) and right, shown on a small one."""
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
