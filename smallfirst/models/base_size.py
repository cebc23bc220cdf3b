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
    body: int
    """Weights that every token passes through: all but embedding and output matrix."""
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


def read_base_size(folder: Path) -> BaseSize | None:
    """Return the size of the model in `folder`; None for a mixture of experts, or if config or weights lack it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return None if any(config.get(name) for name in _EXPERTS) else _size(config, _shapes(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None


def _size(config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> BaseSize:
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    width = int(config.get("head_dim") or hidden // heads)
    if config.get("tie_word_embeddings", False):  # a tied matrix may be stored a second time
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith(_HEAD)}
    body = [shape for name, shape in shapes.items() if not name.endswith((*_EMBEDDING, *_HEAD))]
    return BaseSize(
        parameters=sum(map(math.prod, shapes.values())),
        body=sum(map(math.prod, body)),
        linear_ends=sum(sum(shape) for shape in body if len(shape) == 2),
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
