"""Token rows of unequal length: padded on the right, or packed behind one another, and attention over both.

Attention is two products and a softmax for short rows on a processor, where PyTorch's fused kernel is slow. On a GPU
packed rows go through FlashAttention for rows of unequal length, by flash-attn or by PyTorch from 2.12 on.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

SHAPE_STEP = 8
"""The number of tokens in a batch is rounded up to a multiple of this, of twice this above 128, and of eight times
above 256: oneDNN keeps a kernel of some 100 kB for each number that it has seen, up to a thousand."""

MAX_PADDING_RATIO = 1.25
"""Packed rows attend side by side if the longest is at most this ratio of the shortest, plus a token."""


def rounded_tokens(n: int) -> int:
    """Return the number of tokens, at least `n`, that a batch of `n` is computed with; see `SHAPE_STEP`."""
    step = SHAPE_STEP * (1 if n <= 128 else 2 if n <= 256 else 8)
    return -(-n // step) * step


def pad_right(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the token ids (rows, longest), int64, zeros behind each row."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


class RowGroup(NamedTuple):
    """Rows of similar length, side by side for attention only."""

    lengths: list[int]
    width: int
    places: torch.Tensor | None
    """Padded place of each token (tokens,); None if all rows are equally long."""

    def to(self, device: torch.device) -> RowGroup:
        return self if self.places is None else self._replace(places=self.places.to(device, non_blocking=True))

    def pad(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the values (tokens, ...) as (rows, width, ...), zeros behind each row."""
        if self.places is not None:
            tokens = _moved(tokens, self.places, len(self.lengths) * self.width)
        return tokens.reshape(len(self.lengths), self.width, *tokens.shape[1:])

    def unpad(self, padded: torch.Tensor) -> torch.Tensor:
        """Return the values (rows, width, ...) as (tokens, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.places is None else gather_rows(flat, self.places)


class RaggedRows(NamedTuple):
    """Where rows begin and end for attention kernels that take them unpadded; a common prefix is a row before them."""

    query_ends: torch.Tensor
    """0 and the place after the last token of each row (rows + 1,), int32."""
    key_ends: torch.Tensor
    """The same for keys, where each row has the prefix before its own."""
    key_tokens: torch.Tensor | None
    """Token of each key; None without a prefix: they are the same."""
    longest_query: int
    longest_key: int


@dataclass(eq=False)
class PackedRows:
    """Rows behind one another, shortest first: linear layers see no padding, and attention hardly any."""

    order: list[int]
    """Row numbers, in the order in which their tokens follow."""
    ids: torch.Tensor
    """The common prefix once, then the rest of each row (tokens,), int64."""
    positions: torch.Tensor
    n_shared: int
    groups: list[RowGroup]
    ragged: RaggedRows | None = None
    """On a GPU: the rows for a kernel that needs no groups."""

    @property
    def lengths(self) -> list[int]:
        """Own tokens of each row, in the order in which they follow."""
        return [n for group in self.groups for n in group.lengths]

    @property
    def starts(self) -> list[int]:
        """Place of each row's own first token in `ids`, by row number."""
        starts = itertools.accumulate(self.lengths, initial=self.n_shared)
        return [start for _, start in sorted(zip(self.order, starts, strict=False))]

    def to(self, device: torch.device) -> PackedRows:
        ids, positions = (part.to(device, non_blocking=True) for part in (self.ids, self.positions))
        ragged = _ragged(self.lengths, self.n_shared, device) if device.type == "cuda" else self.ragged
        groups = [group.to(device) for group in self.groups]
        return replace(self, ids=ids, positions=positions, groups=groups, ragged=ragged)

    def pad(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the values (tokens, ...) of rows without a common prefix as (rows, longest, ...), in order."""
        width = self.groups[-1].width
        row = torch.tensor(self.order).repeat_interleave(torch.tensor(self.lengths))
        padded = _moved(tokens, row * width + self.positions, len(self.order) * width)
        return padded.view(len(self.order), width, *tokens.shape[1:])

    def by_group(self, attend: Callable[..., torch.Tensor], *tokens: torch.Tensor) -> torch.Tensor:
        """Return what `attend` makes of each group's padded values, for all tokens but the prefix.

        `tokens` are values (tokens, ...) without the prefix; `attend` takes the group and as many values
        (rows, width, ...) and returns one such tensor.
        """
        sizes = [sum(group.lengths) for group in self.groups]
        parts = zip(*(torch.split(values, sizes) for values in tokens), strict=True)
        mixed = [
            group.unpad(attend(group, *map(group.pad, part))) for group, part in zip(self.groups, parts, strict=True)
        ]
        return torch.cat(mixed)


def pack_rows(rows: Sequence[Sequence[int]], *, n_shared: int = 0) -> PackedRows:
    """Pack rows, none empty, that begin with the same `n_shared` tokens, and have more."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups: list[list[int]] = []
    for length in (len(rows[i]) - n_shared for i in order):
        if groups and length <= MAX_PADDING_RATIO * groups[-1][0] + 1:
            groups[-1].append(length)
        else:
            groups.append([length])
    own = itertools.chain.from_iterable(rows[i][n_shared:] for i in order)
    return PackedRows(
        order,
        torch.tensor([*(rows[0][:n_shared] if n_shared else ()), *own]),
        torch.cat([torch.arange(n_shared), *(torch.arange(n_shared, len(rows[i])) for i in order)]),
        n_shared,
        [_group(lengths) for lengths in groups],
    )


def _group(lengths: list[int]) -> RowGroup:
    width = lengths[-1]
    if lengths[0] == width:
        return RowGroup(lengths, width, None)
    own = torch.arange(width) < torch.tensor(lengths)[:, None]  # (rows, width)
    return RowGroup(lengths, width, own.view(-1).nonzero().view(-1))


def _ragged(lengths: list[int], n_shared: int, device: torch.device) -> RaggedRows:
    queries = [n_shared, *lengths] if n_shared else lengths
    keys = [n_shared, *(n_shared + n for n in lengths)] if n_shared else lengths
    ends, other_ends = (torch.tensor([0, *itertools.accumulate(part)], dtype=torch.int32) for part in (queries, keys))
    tokens = None
    if n_shared:
        prefix, own = torch.arange(n_shared), torch.split(torch.arange(n_shared, n_shared + sum(lengths)), lengths)
        tokens = torch.cat([prefix, *(part for row in own for part in (prefix, row))]).to(device, non_blocking=True)
    ends, other_ends = (part.to(device, non_blocking=True) for part in (ends, other_ends))
    return RaggedRows(ends, other_ends, tokens, max(queries), max(keys))


def gather_rows(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the values (n, ...) at these places, none named twice."""
    return _moved(values, places, None)


def _moved(values: torch.Tensor, places: torch.Tensor, n: int | None) -> torch.Tensor:
    """Return the values (tokens, ...) put at `places` among `n` and zeros; without `n` the values found there."""
    found: torch.Tensor = _Move.apply(values, places.to(values.device), n)  # type: ignore[no-untyped-call]
    return found


class _Move(torch.autograd.Function):
    """Each way is the other's gradient, as no place is named twice; PyTorch's own gradients add one by one."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, places: torch.Tensor, n: int | None) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.back = len(values) if n is None else None
        if n is None:
            return values.index_select(0, places)
        return values.new_zeros(n, *values.shape[1:]).index_copy_(0, places, values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return _moved(gradient, places, ctx.back), None, None


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
        query, *known = given
        if group is not None and packed.n_shared:
            shared = (part.expand(len(query), -1, -1, -1) for part in prefix[1:])
            known = [torch.cat(pair, 1) for pair in zip(shared, known, strict=True)]
        key, value = (part.transpose(1, 2) for part in known)
        return causal_attention(None, query.transpose(1, 2), key, value, None, scaling)[0]

    mixed = packed.by_group(attend, *own)
    return torch.cat([attend(None, *(part[None] for part in prefix))[0], mixed]) if packed.n_shared else mixed


def _ragged_attention(
    kernel: RaggedKernel, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, rows: RaggedRows
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


def register() -> str:
    """Register `causal_attention` with transformers; return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, causal_attention)
    return NAME
