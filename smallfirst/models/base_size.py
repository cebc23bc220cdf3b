"""The size of a base model, counted from its config and the headers of its weight files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from smallfirst.base.records import Record

_EMBEDDING = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_HEAD = ("lm_head.weight", "embed_out.weight")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class BaseSize(Record):
    """The properties of a base model that determine the time and memory of training it."""

    parameters: int
    """All weights; an embedding that is also the output matrix counts once."""
    embedding: int
    """Weights of the input embedding."""
    head: int
    """Weights of an output matrix of its own; 0 if it is the embedding."""
    linear_ends: int
    """Inputs plus outputs of every matrix between embedding and output: the weights of LoRA adapters of rank 1."""
    layers: int
    """Transformer layers."""
    hidden: int
    """Width of the hidden states."""
    inner: int
    """Width of a layer's feed-forward part."""
    heads: int
    """Query heads."""
    query: int
    """Width of all query heads together."""
    key_value: int
    """Width of all key heads together, and of all value heads."""
    vocabulary: int
    causal: bool
    """True for a model that generates text, False for an encoder."""

    @property
    def body(self) -> int:
        """Weights that every token passes through: all but embedding and output matrix."""
        return self.parameters - self.embedding - self.head


def read_base_size(folder: Path) -> BaseSize | None:
    """Return the size of the model in `folder`; None for a mixture of experts, or if config or weights lack it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return None if any(config.get(name) for name in _EXPERTS) else _size(config, _shapes(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None


def _size(config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> BaseSize:
    tied = config.get("tie_word_embeddings", False)
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    width = int(config.get("head_dim") or hidden // heads)
    head = 0 if tied else _weights(shapes, _HEAD)
    twice = _weights(shapes, _HEAD) - head  # a tied matrix that was stored a second time
    body = [shape for name, shape in shapes.items() if not name.endswith((*_EMBEDDING, *_HEAD)) and len(shape) == 2]
    return BaseSize(
        parameters=sum(map(math.prod, shapes.values())) - twice,
        embedding=_weights(shapes, _EMBEDDING),
        head=head,
        linear_ends=sum(map(sum, body)),
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        inner=int(config["intermediate_size"]),
        heads=heads,
        query=heads * width,
        key_value=int(config.get("num_key_value_heads") or heads) * width,
        vocabulary=int(config["vocab_size"]),
        causal=any("ForCausalLM" in name or "LMHead" in name for name in config.get("architectures") or ()),
    )


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor by name. Raise OSError, ValueError or SafetensorError for unreadable files."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    found: dict[str, list[int]] = {}
    for name in names:
        with safe_open(folder / name, framework="np") as file:
            found |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
    return found


def _weights(shapes: Mapping[str, list[int]], endings: tuple[str, ...]) -> int:
    return sum(math.prod(shape) for name, shape in shapes.items() if name.endswith(endings))
