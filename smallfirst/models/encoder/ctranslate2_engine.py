"""An encoder's forward pass by CTranslate2, in float32 or in int8, without PyTorch.

It is built in memory from the folder's safetensors; nothing is written beside them. CTranslate2 leaves padding out of
its products and, in int8, gives every row of tokens a scale of its own. MPNet is no family of its own there: it is
T5's relative attention over BERT's layers, and its positions are read as a second token.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from smallfirst.models.batching import length_batches, usable_cores

MAX_PASSES = 4
"""Passes at the same time. A pass on one core needs no barriers: MiniLM reads 940 short texts a second by two passes on
two busy cores, and 560 by one pass on both."""
PARTS = 2
"""Parts of a batch for each pass at the same time, so that a slow one holds up little."""
FAMILIES = ("bert", "mpnet")
"""Model types of transformers that are built here, and read without padding by `packed_states`."""
MPNET_FIRST_POSITION = 2
"""Row of the first token in MPNet's table of positions."""
MPNET_MAX_DISTANCE = 128
"""Tokens apart from which MPNet's relative attention is constant."""


def unsupported_reason(folder: Path) -> str:
    """Return why CTranslate2 cannot run the encoder of a folder here; empty if it can."""
    if importlib.util.find_spec("ctranslate2") is None:
        return "CTranslate2 is not installed (pip install 'smallfirst[serve]')"
    config = _config(folder)
    if config.get("model_type") not in FAMILIES:
        return f"model type {config.get('model_type')} is none of {', '.join(FAMILIES)}"
    if config.get("hidden_act") not in ("gelu", "relu"):
        return f"activation {config.get('hidden_act')} is neither gelu nor relu"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return "its positions are not absolute"
    return "" if (folder / "model.safetensors").is_file() else "its weights are not one file model.safetensors"


class CTranslate2Encoder:
    """The layers of one encoder. Safe to call from several threads; a batch is read in parts, on several cores."""

    def __init__(self, folder: Path, *, int8: bool) -> None:
        """Read the weights of a folder for which `unsupported_reason` is empty."""
        import ctranslate2

        self.int8 = int8
        self.width: int = _config(folder)["hidden_size"]
        self._is_mpnet = _config(folder)["model_type"] == "mpnet"
        threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or usable_cores()
        self._n_passes = min(threads, MAX_PASSES)
        self._pool = ThreadPoolExecutor(self._n_passes, thread_name_prefix="encoder")
        with tempfile.TemporaryDirectory(prefix="smallfirst-") as converted:
            _specification(folder).save(converted)
            self._encoder = ctranslate2.Encoder(
                converted,
                compute_type="int8" if int8 else "float32",
                inter_threads=self._n_passes,
                intra_threads=threads // self._n_passes,
            )

    def hidden_states(self, encoded: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the last hidden states (texts, longest, width), float32; what lies behind a text is finite."""
        lengths = [len(ids) for ids in encoded]
        states = np.zeros((len(encoded), max(lengths), self.width), dtype=np.float32)

        def read(at: list[int]) -> None:
            rows = [list(encoded[i]) for i in at]
            positions = [list(range(len(ids))) for ids in rows] if self._is_mpnet else None
            found = np.asarray(self._encoder.forward_batch(rows, token_type_ids=positions).last_hidden_state)
            states[at, : found.shape[1]] = found

        parts = list(length_batches(lengths, max_rows=-(-len(encoded) // (PARTS * self._n_passes))))
        if len(parts) == 1:
            read(*parts)
        else:
            list(self._pool.map(read, reversed(parts)))
        return states


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _specification(folder: Path) -> Any:
    from ctranslate2.specs import common_spec, transformer_spec

    config, tensors = _config(folder), _tensors(folder / "model.safetensors")
    is_mpnet = config["model_type"] == "mpnet"
    encoder = transformer_spec.TransformerEncoderSpec(
        config["num_hidden_layers"],
        config["num_attention_heads"],
        pre_norm=False,
        activation=getattr(common_spec.Activation, config["hidden_act"].upper()),
        layernorm_embedding=True,
        num_source_embeddings=2,
        embeddings_merge=common_spec.EmbeddingsMerge.ADD,
        relative_attention_bias=is_mpnet,
    )
    spec = transformer_spec.TransformerEncoderModelSpec(encoder, pooling_layer=False)
    encoder.scale_embeddings = False
    positions = tensors["embeddings.position_embeddings.weight"]
    encoder.embeddings[0].weight = tensors["embeddings.word_embeddings.weight"]
    if is_mpnet:
        encoder.embeddings[1].weight = positions[MPNET_FIRST_POSITION:]
    else:
        encoder.embeddings[1].weight = tensors["embeddings.token_type_embeddings.weight"]
        encoder.position_encodings.encodings = positions
    _set_norm(encoder.layernorm_embedding, tensors, "embeddings.LayerNorm")
    for number, layer in enumerate(encoder.layer):
        _set_layer(layer, tensors, f"encoder.layer.{number}.", is_mpnet)
    spec.config.layer_norm_epsilon = config["layer_norm_eps"]
    spec.register_vocabulary([str(i) for i in range(len(encoder.embeddings[0].weight))])
    spec.config.unk_token = "0"  # texts come as numbers: the words of the vocabulary are never used
    spec.validate()
    spec.optimize()
    return spec


def _set_layer(layer: Any, tensors: dict[str, np.ndarray], at: str, is_mpnet: bool) -> None:
    attention = layer.self_attention
    if is_mpnet:
        attention.relative_attention_bias = tensors["encoder.relative_attention_bias.weight"]
        attention.relative_attention_max_distance = np.dtype("int32").type(MPNET_MAX_DISTANCE)
        parts, out, norm = ("attn.q", "attn.k", "attn.v"), "attn.o", "LayerNorm"
    else:
        parts, out, norm = ("self.query", "self.key", "self.value"), "output.dense", "output.LayerNorm"
    for end in ("weight", "bias"):
        joined = np.concatenate([tensors[f"{at}attention.{part}.{end}"] for part in parts])
        setattr(attention.linear[0], end, joined)
        setattr(attention.linear[1], end, tensors[f"{at}attention.{out}.{end}"])
        setattr(layer.ffn.linear_0, end, tensors[f"{at}intermediate.dense.{end}"])
        setattr(layer.ffn.linear_1, end, tensors[f"{at}output.dense.{end}"])
    _set_norm(attention.layer_norm, tensors, f"{at}attention.{norm}")
    _set_norm(layer.ffn.layer_norm, tensors, f"{at}output.LayerNorm")


def _set_norm(norm: Any, tensors: dict[str, np.ndarray], name: str) -> None:
    norm.gamma, norm.beta = tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """Return tensors by their names without the family's prefix, all in float32."""
    import safetensors

    found, parts = {}, safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    for name, part in parts:
        if part["dtype"] == "BF16":  # NumPy has no such type: its bits are the upper half of a float32
            bits = np.frombuffer(part["data"], dtype="<u2").astype("<u4") << 16
            found[name] = bits.view("<f4").reshape(part["shape"])
        elif part["dtype"] in ("F32", "F16"):
            kind = np.dtype(f"<f{4 if part['dtype'] == 'F32' else 2}")
            found[name] = np.frombuffer(part["data"], dtype=kind).astype(np.float32).reshape(part["shape"])
    return {name.removeprefix("bert.").removeprefix("mpnet."): value for name, value in found.items()}
