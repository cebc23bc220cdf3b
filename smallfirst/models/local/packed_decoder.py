"""A Llama-like decoder (Llama, Qwen2, Qwen3) read without padding, for answers that are read, not written.

All rows of a batch stand one behind the other, so that the large products see no padding; only attention, a few
percent of the work, pads to the longest row, and causal attention needs no mask for what comes after a row. Queries,
keys and values are one product, gate and up another. In the last layer only what is asked for goes on. Rotary pairs
are made neighbours by reordering the rows of the query and key weights (the same for both, so their products stay),
then turning is one complex multiplication.

What every prompt begins with is read once, by transformers' own forward, and its keys and values are reused. It is the
operator's text: nothing of a client's text is ever kept, so there is nothing that one tenant could time to learn
about another, and no key by tenant is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from smallfirst.models.local.int8_matmul import PrepackedLinear
from smallfirst.models.local.packed_layers import LinearFactory, PackedLayer, pack_layer, rms_norm, rotary_pair_order
from smallfirst.models.local.smoothquant import InputRanges

FAMILIES = ("llama", "qwen2", "qwen3")
"""transformers' model types whose layers are those computed here."""
SHORT_TOKENS = 512
"""Rows up to this long are attended to with scores written out; longer ones by PyTorch's kernel, which keeps none."""
FIXED_ROTARY = ("default", "linear", "llama3")
"""Kinds of rotary positions whose angles do not depend on how long a text is."""

FP32 = torch.float32
"""Said each time: while transformers loads a model in another thread, the whole process has that model's default."""


class SharedPrefix(NamedTuple):
    """What every prompt begins with, and its keys and values."""

    ids: tuple[int, ...]
    keys: list[torch.Tensor]
    """By layer (kv_heads, time, head_dim)."""
    values: list[torch.Tensor]


class PackedBatch(NamedTuple):
    """Where each token of a batch stands."""

    ids: torch.Tensor
    """All rows' tokens, one row behind the other (tokens,)."""
    turns: torch.Tensor
    """Cosine and sine of each token's position, as complex numbers (tokens, 1, head_dim / 2)."""
    spread: torch.Tensor | None
    """From padded places to tokens (rows × width,); None if no row is shorter than another."""
    gather: torch.Tensor | None
    """From tokens to padded places (tokens,); None likewise."""
    last: torch.Tensor
    """The last token of each row (rows,)."""
    hidden: torch.Tensor
    """Added to the scores: -inf where a key is after the query (shared + width, width)."""
    rows: int
    width: int


class PackedDecoder:
    """The layers of a causal model, ready to read batches of prompts. Not thread-safe."""

    def __init__(
        self, model: Any, make: LinearFactory = PrepackedLinear, *, ranges: Sequence[InputRanges] | None = None
    ) -> None:
        """From a loaded model of a supported family; `make` turns weights into a product.

        With `ranges`, one a layer, weights are smoothed by them before that (`models.smoothing`).
        The model's own weights stay as they are. Raises ValueError where `unsupported_reason` says something.
        """
        why = unsupported_reason(model)
        if why:
            raise ValueError(why)
        config, body = model.config, model.model
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim: int = body.layers[0].self_attn.head_dim
        self._model, self._embedding = model, body.embed_tokens.weight.detach()
        self._frequencies = body.rotary_emb.inv_freq.detach().float()
        self._gain = float(body.rotary_emb.attention_scaling)
        given: Sequence[InputRanges | None] = ranges or [None] * len(body.layers)
        self._layers = [pack_layer(layer, make, seen) for layer, seen in zip(body.layers, given, strict=True)]
        self._norm = rms_norm(body.norm)
        self._nothing = SharedPrefix(
            (), *([torch.empty(self.kv_heads, 0, self.head_dim, dtype=FP32)] * len(self._layers),) * 2
        )
        self._shared = self._nothing

    def share_prefix(self, ids: Sequence[int]) -> None:
        """Nothing back; from now on prompts that begin with these tokens, and go on, reuse what is read here."""
        if not ids:
            self._shared = self._nothing
            return
        with torch.inference_mode():
            read = self._model.model(input_ids=torch.tensor([list(ids)]), use_cache=True).past_key_values
        order = rotary_pair_order(self.head_dim)
        keys = [layer.keys[0][..., order].float() for layer in read.layers]
        self._shared = SharedPrefix(tuple(ids), keys, [layer.values[0].float() for layer in read.layers])

    @torch.inference_mode()
    def last_states(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """State after the last token of each prompt (prompts, hidden), fp32. No prompt is empty."""
        n_shared = len(self._shared.ids)
        groups: dict[bool, list[int]] = {}
        for at, ids in enumerate(prompts):
            begins = len(ids) > n_shared and tuple(ids[:n_shared]) == self._shared.ids
            groups.setdefault(begins, []).append(at)
        states = torch.empty(len(prompts), self._embedding.shape[1], dtype=FP32)
        for begins, chosen in groups.items():
            shared = self._shared if begins else self._nothing
            plan = self._plan([prompts[at][len(shared.ids) :] for at in chosen], len(shared.ids))
            states[torch.tensor(chosen)] = self._read(plan, shared, plan.last)
        return states

    @torch.inference_mode()
    def all_states(self, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """States after every token of each prompt, each (its tokens, hidden), fp32."""
        plan = self._plan(prompts, 0)
        return list(torch.split(self._read(plan, self._nothing, None), [len(ids) for ids in prompts]))

    def _plan(self, prompts: Sequence[Sequence[int]], n_shared: int) -> PackedBatch:
        lengths = [len(ids) for ids in prompts]
        width, counts = max(lengths), torch.tensor(lengths)
        ends = counts.cumsum(0)
        own = torch.arange(width) < counts[:, None]  # (rows, width)
        places = ((ends - counts)[:, None] + torch.arange(width)).masked_fill_(~own, 0)
        ragged = min(lengths) < width
        angles = (n_shared + torch.arange(width))[:, None] * self._frequencies  # (width, head_dim / 2)
        turns = torch.polar(torch.full_like(angles, self._gain), angles)[:, None]
        after = torch.full((n_shared + width, width), -torch.inf, dtype=FP32).tril_(-1 - n_shared)
        return PackedBatch(
            ids=torch.tensor(list(itertools.chain.from_iterable(prompts))),
            turns=turns[torch.cat([torch.arange(n) for n in lengths])],
            spread=places.view(-1) if ragged else None,
            gather=own.view(-1).nonzero().view(-1) if ragged else None,
            last=ends - 1,
            hidden=after,
            rows=len(lengths),
            width=width,
        )

    def _read(self, plan: PackedBatch, shared: SharedPrefix, wanted: torch.Tensor | None) -> torch.Tensor:
        """States of the wanted tokens, or of all (tokens, hidden)."""
        states = self._embedding[plan.ids].float()  # (tokens, hidden)
        for at, layer in enumerate(self._layers):
            products, factor = layer.qkv(states * layer.before.weight, layer.before.factor(states))
            mixed = self._attend(_times(products.float(), factor), plan, layer, shared.keys[at], shared.values[at])
            if wanted is not None and at == len(self._layers) - 1:
                states, mixed = states[wanted], mixed[wanted]
            _add(states, *layer.out(mixed, None))
            products, factor = layer.gate_up(states * layer.between.weight, layer.between.factor(states))
            gate, up = products.chunk(2, dim=1)
            # The factor of `up` stays outside: it goes through the last product unchanged.
            active = F.silu(_times(gate, factor), inplace=True).mul_(up)
            _add(states, *layer.down(active, factor))
        return self._norm(states)

    def _attend(
        self, qkv: torch.Tensor, plan: PackedBatch, layer: PackedLayer, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Attention output (tokens, heads × head_dim) from queries, keys and values (tokens, …); qkv is overwritten."""
        qkv = qkv.view(len(qkv), -1, self.head_dim)  # (tokens, heads + 2 kv_heads, head_dim)
        turning = qkv[:, : self.heads + self.kv_heads]
        if layer.of_heads:
            for part, norm in zip(
                torch.split(turning, [self.heads, self.kv_heads], dim=1), layer.of_heads, strict=True
            ):
                part.mul_(norm.factor(part)).mul_(norm.weight)
        torch.view_as_complex(turning.view(*turning.shape[:-1], -1, 2)).mul_(plan.turns)
        if plan.spread is not None:
            qkv = qkv.index_select(0, plan.spread)
        qkv = qkv.view(plan.rows, plan.width, -1, self.head_dim).transpose(1, 2)  # (rows, heads, width, head_dim)
        query, key, value = torch.split(qkv, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        mix = _mixed if plan.width <= SHORT_TOKENS else _mixed_long
        mixed = mix(query, _behind(keys, key), _behind(values, value), plan.hidden)  # (rows, width, heads × head_dim)
        mixed = mixed.flatten(0, 1)
        return mixed if plan.gather is None else mixed.index_select(0, plan.gather)


def unsupported_reason(model: Any) -> str:
    """Why a model cannot be read here; empty if it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type} is none of {', '.join(FAMILIES)}"
    body, rotary = model.model, model.model.rotary_emb
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act} is not silu"
    if rotary.rope_type not in FIXED_ROTARY:
        return f"rotary positions of type {rotary.rope_type} depend on the text's length"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "some layers see only the nearest tokens"
    if 2 * len(rotary.inv_freq) != body.layers[0].self_attn.head_dim:
        return "only a part of each head is turned"
    kinds = {(weight.dtype, weight.device.type) for weight in model.parameters()}
    if len(kinds) > 1 or not kinds <= {(torch.bfloat16, "cpu"), (torch.float32, "cpu")}:
        return "weights are not all fp32, or all bf16, in the processor's memory"
    return ""


def _times(rows: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    return rows if factor is None else rows.mul_(factor)


def _add(states: torch.Tensor, products: torch.Tensor, factor: torch.Tensor | None) -> None:
    if factor is None:
        states.add_(products)
    else:
        states.addcmul_(products, factor)


def _behind(shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Shared keys (kv_heads, shared, head_dim) and each row's own (rows, kv_heads, shared + width, head_dim)."""
    if not shared.shape[1]:
        return own
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)


def _mixed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Attention (rows, width, heads × head_dim) with keys outermost in the scores, where a softmax is fastest.

    query (rows, heads, width, head_dim); key, value (rows, kv_heads, keys, head_dim); hidden (keys, width).
    """
    rows, heads, width, head_dim = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    folded = query.view(rows, kv_heads, groups, width, head_dim).transpose(2, 3)
    folded = folded.reshape(rows * kv_heads, width * groups, head_dim)
    hidden = hidden.repeat_interleave(groups, dim=1)
    scores = torch.baddbmm(hidden, key.flatten(0, 1), folded.transpose(1, 2), alpha=head_dim**-0.5)
    mixed = torch.bmm(scores.softmax(dim=1).transpose(1, 2), value.flatten(0, 1))
    return mixed.view(rows, kv_heads, width, groups * head_dim).transpose(1, 2).reshape(rows, width, -1)


def _mixed_long(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The same by PyTorch's own kernel."""
    grouped = query.shape[1] > key.shape[1]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=hidden.T, enable_gqa=grouped)
    return mixed.transpose(1, 2).flatten(2)
