"""Label probabilities from one position of a causal model: one forward pass per text, whatever the number of labels.

The packed decoder reads prompts of a Llama-like model (Llama, Qwen2, Qwen3) without padding, for answers at their ends.
Rows are concatenated for the large products; only attention pads. oneDNN packs a bf16 matrix anew for every product
unless it is given a packed one, so weights are packed once. Query and key weights are reordered to make rotary
pairs adjacent, so rotation is one complex multiplication. The operator's common prefix is read once and cached; no
client's text ever is, so no tenant can learn about another's from response times.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from smallfirst.models.batching import length_batches, run_in_compute_thread
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.local.packed_rows import causal_attention, pad_right, rounded_tokens
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.local.weights import load_merged
from smallfirst.models.manifest import Manifest

FAMILIES = ("llama", "qwen2", "qwen3")
"""Model types of transformers whose layers are implemented here."""
FIXED_ROTARY = ("default", "linear", "llama3")
"""Kinds of rotary positions whose angles do not depend on the length of a text."""

FP32 = torch.float32
"""Always given: while transformers loads a model in another thread, the process-wide default is that model's dtype."""

Affine = tuple[torch.Tensor, torch.Tensor | None]
"""Weight (outputs, inputs) and bias (outputs,)."""


class PackedLinear:
    """A matrix in its own precision, packed in bf16 where the processor multiplies bf16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._dtype, self._bias = weight.dtype, bias
        self._packed = _can_pack(weight.dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._packed else weight

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the products (n, outputs) of rows (n, inputs)."""
        rows = rows.to(self._dtype)
        if self._packed:
            products: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
            return products
        return F.linear(rows, self._weight, self._bias)


class RMSNorm(NamedTuple):
    """Root mean square normalisation."""

    weight: torch.Tensor
    """One per channel, fp32."""
    eps: float

    def factor(self, rows: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        factor: torch.Tensor = length.square_().div_(rows.shape[-1]).add_(self.eps).rsqrt_()
        return factor

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows * self.factor(rows)).mul_(self.weight)


class PackedLayer(NamedTuple):
    """One layer's weights."""

    before: RMSNorm
    qkv: PackedLinear
    head_norms: tuple[RMSNorm, RMSNorm] | None
    """Of each query and each key (Qwen3)."""
    out: PackedLinear
    between: RMSNorm
    gate_up: PackedLinear
    down: PackedLinear


class SharedPrefix(NamedTuple):
    """The common prefix of all prompts, with its keys and values."""

    ids: tuple[int, ...]
    keys: list[torch.Tensor]
    """By layer (kv_heads, time, head_dim)."""
    values: list[torch.Tensor]


class Layout(NamedTuple):
    """The layout of a batch."""

    ids: torch.Tensor
    """All rows' tokens, concatenated, and zeros up to a rounded number (tokens,)."""
    rotations: torch.Tensor
    """Cosine and sine of each token's position, as complex numbers (tokens, 1, head_dim / 2)."""
    spread: torch.Tensor | None
    """Token of each padded place (rows × width,); None if every place is a token's and every token has one."""
    gather: torch.Tensor | None
    """Padded place of each token (tokens,), the first one for the zeros; None likewise."""
    last: torch.Tensor
    rows: int
    width: int


class PackedDecoder:
    """The layers of a causal model without `unsupported_reason`, ready to read prompts. Not thread-safe."""

    def __init__(self, model: Any) -> None:
        config, body = model.config, model.model
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim: int = body.layers[0].self_attn.head_dim
        self._model, self._embedding = model, body.embed_tokens.weight.detach()
        self._frequencies = body.rotary_emb.inv_freq.detach().float()
        self._gain = float(body.rotary_emb.attention_scaling)
        self._layers = [_pack_layer(layer) for layer in body.layers]
        self._norm = rms_norm(body.norm)
        self._no_prefix = SharedPrefix(
            (), *([torch.empty(self.kv_heads, 0, self.head_dim, dtype=FP32)] * len(self._layers),) * 2
        )
        self._shared = self._no_prefix

    def share_prefix(self, ids: Sequence[int]) -> None:
        """Read these tokens once; longer prompts that begin with them reuse their keys and values."""
        if not ids:
            self._shared = self._no_prefix
            return
        with torch.inference_mode():
            read = self._model.model(input_ids=torch.tensor([list(ids)]), use_cache=True).past_key_values
        order = rotary_pair_order(self.head_dim)
        keys = [layer.keys[0][..., order].float() for layer in read.layers]
        self._shared = SharedPrefix(tuple(ids), keys, [layer.values[0].float() for layer in read.layers])

    @torch.inference_mode()
    def last_states(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the state after the last token of each prompt (prompts, hidden), fp32. No prompt may be empty."""
        shared = self._shared
        if any(tuple(ids[: len(shared.ids)]) != shared.ids or len(ids) == len(shared.ids) for ids in prompts):
            shared = self._no_prefix  # a prompt was cut
        n_shared = len(shared.ids)
        return self._read(self._layout([ids[n_shared:] for ids in prompts], n_shared), shared)

    def _layout(self, prompts: Sequence[Sequence[int]], n_shared: int) -> Layout:
        lengths = [len(ids) for ids in prompts]
        width, counts = max(lengths), torch.tensor(lengths)
        ends = counts.cumsum(0)
        own = torch.arange(width) < counts[:, None]  # (rows, width)
        places = ((ends - counts)[:, None] + torch.arange(width)).masked_fill_(~own, 0)
        n_zeros = rounded_tokens(sum(lengths)) - sum(lengths)
        ragged = n_zeros > 0 or min(lengths) < width
        angles = (n_shared + torch.arange(width))[:, None] * self._frequencies  # (width, head_dim / 2)
        rotations = torch.polar(torch.full_like(angles, self._gain), angles)[:, None]
        return Layout(
            ids=torch.tensor([*itertools.chain.from_iterable(prompts), *[0] * n_zeros]),
            rotations=rotations[torch.cat([*map(torch.arange, lengths), torch.zeros(n_zeros, dtype=torch.long)])],
            spread=places.view(-1) if ragged else None,
            gather=F.pad(own.view(-1).nonzero().view(-1), (0, n_zeros)) if ragged else None,
            last=ends - 1,
            rows=len(lengths),
            width=width,
        )

    def _read(self, layout: Layout, shared: SharedPrefix) -> torch.Tensor:
        """Return the states after the last token of each row (rows, hidden)."""
        states = self._embedding[layout.ids].float()  # (tokens, hidden)
        for at, layer in enumerate(self._layers):
            qkv = layer.qkv(layer.before(states)).float()
            mixed = self._attend(qkv, layout, layer, shared.keys[at], shared.values[at])
            if at == len(self._layers) - 1:
                states, mixed = states[layout.last], mixed[layout.last]
            states.add_(layer.out(mixed))
            gate, up = layer.gate_up(layer.between(states)).chunk(2, dim=1)
            states.add_(layer.down(F.silu(gate, inplace=True).mul_(up)))
        return self._norm(states)

    def _attend(
        self, qkv: torch.Tensor, layout: Layout, layer: PackedLayer, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention output (tokens, heads × head_dim); qkv (tokens, …) is overwritten."""
        qkv = qkv.view(len(qkv), -1, self.head_dim)  # (tokens, heads + 2 kv_heads, head_dim)
        rotated = qkv[:, : self.heads + self.kv_heads]
        if layer.head_norms:
            for part, norm in zip(
                torch.split(rotated, [self.heads, self.kv_heads], dim=1), layer.head_norms, strict=True
            ):
                part.mul_(norm.factor(part)).mul_(norm.weight)
        torch.view_as_complex(rotated.view(*rotated.shape[:-1], -1, 2)).mul_(layout.rotations)
        if layout.spread is not None:
            qkv = qkv.index_select(0, layout.spread)
        qkv = qkv.view(layout.rows, layout.width, -1, self.head_dim).transpose(1, 2)  # (rows, heads, width, head_dim)
        query, key, value = torch.split(qkv, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        known = _concat_keys(keys, key), _concat_keys(values, value)
        mixed = causal_attention(None, query, *known, None, self.head_dim**-0.5)[0]  # (rows, width, heads, head_dim)
        mixed = mixed.flatten(2).flatten(0, 1)
        return mixed if layout.gather is None else mixed.index_select(0, layout.gather)


def unsupported_reason(model: Any) -> str:
    """Return why a model cannot be packed; empty if it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type} is none of {', '.join(FAMILIES)}"
    body, rotary = model.model, model.model.rotary_emb
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act} is not silu"
    if rotary.rope_type not in FIXED_ROTARY:
        return f"rotary positions of type {rotary.rope_type} depend on the text's length"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "some layers use sliding-window attention"
    if 2 * len(rotary.inv_freq) != body.layers[0].self_attn.head_dim:
        return "only a part of each head is rotated"
    kinds = {(weight.dtype, weight.device.type) for weight in model.parameters()}
    if len(kinds) > 1 or not kinds <= {(torch.bfloat16, "cpu"), (torch.float32, "cpu")}:
        return "weights are not all fp32, or all bf16, in the processor's memory"
    return ""


def _can_pack(dtype: torch.dtype) -> bool:
    """Return whether products with a packed matrix of this precision work on this machine."""
    if dtype != torch.bfloat16:
        return False
    try:
        supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return False
    return supported


def _concat_keys(shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    if not shared.shape[1]:
        return own
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)


def _pack_layer(layer: Any) -> PackedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    order = rotary_pair_order(attention.head_dim)
    turned = [_reorder(part, order) for part in (attention.q_proj, attention.k_proj)]
    head_norms = None
    if hasattr(attention, "q_norm"):
        head_norms = (rms_norm(attention.q_norm, order), rms_norm(attention.k_norm, order))
    return PackedLayer(
        before=rms_norm(layer.input_layernorm),
        qkv=PackedLinear(*_join(*turned, _weights(attention.v_proj))),
        head_norms=head_norms,
        out=PackedLinear(*_weights(attention.o_proj)),
        between=rms_norm(layer.post_attention_layernorm),
        gate_up=PackedLinear(*_join(_weights(mlp.gate_proj), _weights(mlp.up_proj))),
        down=PackedLinear(*_weights(mlp.down_proj)),
    )


def rotary_pair_order(head_dim: int) -> torch.Tensor:
    """Return the order that makes the two halves of each rotary pair adjacent."""
    return torch.arange(head_dim).view(2, -1).T.reshape(-1)


def _weights(linear: Any) -> Affine:
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def _reorder(linear: Any, order: torch.Tensor) -> Affine:
    weight, bias = _weights(linear)
    weight = weight.view(-1, len(order), weight.shape[1])[:, order].flatten(0, 1)
    return weight, None if bias is None else bias.view(-1, len(order))[:, order].flatten()


def _join(*parts: Affine) -> Affine:
    biases = [torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias for weight, bias in parts]
    given = any(bias is not None for _, bias in parts)
    return torch.cat([weight for weight, _ in parts]), torch.cat(biases) if given else None


def rms_norm(module: Any, order: torch.Tensor | None = None) -> RMSNorm:
    """Return a normalisation of a loaded model, its channels in this order."""
    weight = module.weight.detach().float()
    return RMSNorm(weight if order is None else weight[order], float(module.variance_epsilon))


PACKED_BATCH_TOKENS = 256
"""Tokens that the packed decoder reads together: without padding, more of them only overflow the processor's cache."""


class LabelScorer:
    """Weights and tokenizer of a causal model, and the label probabilities they give. Not thread-safe."""

    batch_rows = 32
    batch_tokens = 1024
    """Most tokens in a batch of more than one row; it bounds how long one long text delays another."""

    def __init__(self, model: Any, tokenizer: Any, manifest: Manifest) -> None:
        """Score with transformers' own forward, so that the weights may be trained."""
        self.model, self.tokenizer, self.manifest = model, tokenizer, manifest
        self.label_tokens = torch.tensor(manifest.label_tokens)
        self.packed: PackedDecoder | None = None
        """Reads prompts in place of transformers, with equal answers, where it knows the model's family."""
        self._serving = False

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> LabelScorer:
        """Return the scorer of a folder that training wrote, by the packed decoder if possible."""
        scorer = cls(*load_merged(folder), manifest)
        if not unsupported_reason(scorer.model):
            scorer.packed, scorer.batch_tokens = PackedDecoder(scorer.model), PACKED_BATCH_TOKENS
            scorer.packed.share_prefix(scorer.prefix)
        scorer._serving = True
        return scorer

    @property
    def prefix(self) -> list[int]:
        """Tokens with which every prompt of the task begins: the start token and the operator's own words."""
        one, other = self.encode(["a", "Z 9"])  # two texts that have nothing in common
        pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one[:-1], other[:-1], strict=False))
        return [token for token, _ in pairs]

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        return run_in_compute_thread(lambda: self._score(texts)) if self._serving else self._score(texts)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        task, limit = self.manifest.task, self.manifest.max_tokens
        return [encode_prompt(self.tokenizer, task.prompt(text), limit) for text in texts]

    def _score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        encoded = self.encode(texts)
        results: dict[int, LabelLogProbs] = {}
        lengths = [len(ids) for ids in encoded]
        for chosen in length_batches(lengths, max_rows=self.batch_rows, max_tokens=self.batch_tokens):
            began = time.perf_counter()
            rows = self._forward([encoded[i] for i in chosen])
            busy_s = (time.perf_counter() - began) / len(chosen)
            results |= {i: LabelLogProbs(row, lengths[i], busy_s) for i, row in zip(chosen, rows, strict=True)}
        return [results[i] for i in range(len(encoded))]

    @torch.inference_mode()
    def _forward(self, batch: list[list[int]]) -> list[list[float]]:
        """Return the log-probabilities of the labels (batch, labels)."""
        if self.packed:
            last = self.packed.last_states(batch)
        else:
            states = self.model.model(input_ids=pad_right(batch).to(self.model.device), use_cache=False)
            last = states.last_hidden_state[torch.arange(len(batch)), [len(ids) - 1 for ids in batch]].float()
        head = self.model.get_output_embeddings().weight[self.label_tokens.to(last.device)].float()
        rows: list[list[float]] = torch.log_softmax(last @ head.T, dim=-1).tolist()
        return rows
