"""Causal attention: two products and a softmax for short rows on a processor, where PyTorch's fused kernel is slow.

On a GPU packed rows go through FlashAttention for rows of unequal length, by flash-attn or by PyTorch from 2.12 on.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from smallfirst.models.local.token_batches import PackedRows, RaggedRows, RowGroup

NAME = "smallfirst_causal"
SHORT_TOKENS = 256
"""Rows with at most this many keys are computed here."""
MAX_FLASH_WIDTH = 256
"""Widest head that FlashAttention takes."""

RaggedKernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, RaggedRows, float], torch.Tensor]
"""From query (tokens, heads, head_dim), key and value (keys, kv_heads, head_dim) to the output, as query."""


def causal_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    packed: PackedRows | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output (rows, time, heads, head_dim); `attention_mask`, if given, is the only mask.

    query (rows, heads, time, head_dim); key, value (rows, kv_heads, keys, head_dim), of which the last `time` keys are
    the queries' own; attention_mask (rows, 1, time, keys) is added to the scores. With `packed` there is one row, of
    these packed rows' tokens; each of them sees itself and the common prefix.
    """
    if packed is not None:
        fits = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= MAX_FLASH_WIDTH
        if packed.ragged is not None and fits and (kernel := ragged_kernel()) is not None:
            return _ragged_attention(kernel, query, key, value, scaling, packed.ragged)[None], None
        return _packed_attention(query, key, value, scaling, packed)[None], None
    rows, heads, time, width = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    if query.is_cuda or (time > 1 and keys > SHORT_TOKENS):
        mask = attention_mask
        if mask is None and keys > time:
            mask = _future(time, keys, query)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, is_causal=mask is None, enable_gqa=groups > 1
        )
        return mixed.transpose(1, 2).contiguous(), None
    mask = _future(time, keys, query) if attention_mask is None else attention_mask.float()
    folded = query.reshape(rows, kv_heads, groups * time, width)
    scores = torch.matmul(folded, key.transpose(-1, -2)).float() * scaling
    weights = (scores + mask.repeat(*[1] * (mask.dim() - 2), groups, 1)).softmax(-1).to(value.dtype)
    mixed = torch.matmul(weights, value).reshape(rows, heads, time, width)
    return mixed.transpose(1, 2).contiguous(), None


def _packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, packed: PackedRows
) -> torch.Tensor:
    """Return the attention output of packed rows (tokens, heads, head_dim)."""
    sizes = [packed.n_shared, query.shape[2] - packed.n_shared]
    prefix, own = zip(*(torch.split(part[0].transpose(0, 1), sizes) for part in (query, key, value)), strict=True)

    def attend(group: RowGroup | None, *given: torch.Tensor) -> torch.Tensor:
        """Take and return (rows, time, heads, head_dim)."""
        query, *known = given
        if group is not None and packed.n_shared:
            shared = (part.expand(len(query), -1, -1, -1) for part in prefix[1:])
            known = [torch.cat(pair, 1) for pair in zip(shared, known, strict=True)]
        key, value = (part.transpose(1, 2) for part in known)
        return causal_attention(None, query.transpose(1, 2), key, value, None, scaling)[0]

    mixed = packed.by_group(attend, *own)
    return torch.cat([attend(None, *(part[None] for part in prefix))[0], mixed]) if packed.n_shared else mixed


def _ragged_attention(
    kernel: RaggedKernel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    rows: RaggedRows,
) -> torch.Tensor:
    """Return the attention output of packed rows (tokens, heads, head_dim) by one call of a kernel."""
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    if rows.key_tokens is not None:
        key, value = (part.index_select(0, rows.key_tokens) for part in (key, value))
    return kernel(query.contiguous(), key.contiguous(), value.contiguous(), rows, scaling)


@cache
def ragged_kernel() -> RaggedKernel | None:
    """Return the installed kernel whose causal mask is aligned at the last key of each row; None without any."""
    if importlib.util.find_spec("flash_attn") is not None:
        flash: Any = importlib.import_module("flash_attn").flash_attn_varlen_func
        return lambda *parts: flash(*parts[:3], *_ends(parts[3]), softmax_scale=parts[4], causal=True)
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    varlen: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    if not {"window_size", "enable_gqa"} <= inspect.signature(varlen).parameters.keys():
        return None
    causal = {"window_size": (-1, 0), "enable_gqa": True}
    return lambda *parts: varlen(*parts[:3], *_ends(parts[3]), scale=parts[4], **causal)


def _ends(rows: RaggedRows) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    return rows.query_ends, rows.key_ends, rows.longest_query, rows.longest_key


def _future(time: int, keys: int, query: torch.Tensor) -> torch.Tensor:
    """Return the mask that hides the keys after each of the last `time` positions (time, keys)."""
    return torch.full((time, keys), float("-inf"), dtype=torch.float32, device=query.device).triu(1 + keys - time)


def register(function: Callable[..., Any] = causal_attention) -> str:
    """Register the function with transformers; return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, function)
    return NAME
