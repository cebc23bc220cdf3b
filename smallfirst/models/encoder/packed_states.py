"""The hidden states of BERT and MPNet without padding: rows behind one another, side by side in attention only.

Fine-tuning on rows drawn at random spends two thirds of its time on padding otherwise.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from smallfirst.models.local.packed_rows import PackedRows, RowGroup

SHORT_TOKENS = 192
"""Rows up to this long attend faster in bf16 by two products and a softmax than by PyTorch's fused kernel."""


def packed_states(
    model: Any, packed: PackedRows, states: torch.Tensor | None = None, *, layers: slice = slice(None)
) -> torch.Tensor:
    """Return the hidden states (tokens, width) of a BERT or an MPNet after these layers.

    `states` are those below the layers; None: the embeddings. Gradients and dropout are the model's.
    """
    mpnet = model.config.model_type == "mpnet"
    positions = packed.positions + (model.embeddings.padding_idx + 1 if mpnet else 0)
    if states is None:
        states = model.embeddings(input_ids=packed.ids[None], position_ids=positions[None])[0]
    assert states is not None
    bias = None
    if mpnet:  # of distances, for the longest row; all layers share it
        longest = states.new_empty(1, packed.groups[-1].width, 0)
        bias = model.encoder.compute_position_bias(longest)  # (1, heads, longest, longest)
    heads: int = model.config.num_attention_heads
    dropout = model.config.attention_probs_dropout_prob if model.training else 0.0
    for layer in model.encoder.layer[layers]:
        *inputs, out, norm, residual_dropout = _attention_of(layer)
        split = (len(states), heads, -1)
        mixed = packed.by_group(
            partial(_attend, bias, dropout), *(part(states).view(split) for part in inputs)
        ).flatten(1)
        states = norm(residual_dropout(out(mixed)) + states)
        states = layer.output(layer.intermediate(states), states)
    return states


def _attend(
    bias: torch.Tensor | None,
    dropout: float,
    group: RowGroup,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """Return the attention output; all tensors (rows, width, heads, head_dim)."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # (rows, heads, width, head_dim)
    mask = None if bias is None else bias[..., : group.width, : group.width]
    if group.places is not None:
        behind = torch.arange(group.width) >= torch.tensor(group.lengths)[:, None]
        hidden = torch.zeros(behind.shape).masked_fill_(behind, -torch.inf)[:, None, None]
        mask = hidden if mask is None else mask + hidden
    if not dropout and (query.dtype == torch.float32 or group.width > SHORT_TOKENS):
        mask = None if mask is None else mask.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * (1 / math.sqrt(query.shape[-1]))
    weights = (scores if mask is None else scores + mask).softmax(-1).to(value.dtype)
    return torch.matmul(F.dropout(weights, dropout, training=dropout > 0), value).transpose(1, 2)


def _attention_of(layer: Any) -> tuple[Any, ...]:
    """Return query, key, value and output, then the norm after the residual and the dropout of what is added to it."""
    block = layer.attention
    if hasattr(block, "attn"):
        own = block.attn
        return own.q, own.k, own.v, own.o, block.LayerNorm, block.dropout
    own, after = block.self, block.output
    return own.query, own.key, own.value, after.dense, after.LayerNorm, after.dropout
