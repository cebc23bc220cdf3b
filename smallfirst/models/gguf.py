"""Write a causal model as one GGUF file, the format of llama.cpp.

llama.cpp rotates neighbouring rows of Q and K where transformers rotates rows half a head apart, so Llama's are
reordered. The file holds only the *name* of its pre-tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smallfirst.base.errors import ConfigError, MissingExtra
from smallfirst.models.manifest import Manifest

if TYPE_CHECKING:
    import gguf
    import numpy as np

FAMILIES = ("llama", "qwen2")
"""Architectures that can be written."""
MANIFEST_KEY = "smallfirst.manifest"
"""Key of the manifest in the file, as JSON: labels, code tokens, temperature."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_NAMES = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", rf"{_WORDS}|\p{{N}}|{_REST}"), ("ByteLevel", False)): "qwen2",
    (("Split", rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"), ("ByteLevel", False)): "llama-bpe",
}
"""llama.cpp's name of a pre-tokenizer, by its steps and the setting of each."""


def write_gguf(
    model: Any, tokenizer: Any, manifest: Manifest, path: Path, *, precision: Literal["bf16", "f16", "q8_0"]
) -> tuple[str, ...]:
    """Write the file; return notes for its user. Raise ConfigError naming everything GGUF cannot hold, MissingExtra."""
    gguf = _gguf()
    if problems := list(_problems(tokenizer, model.config)):
        raise ConfigError(
            "this model cannot be written as GGUF:\n  " + "\n  ".join(problems),
            hint="export it as safetensors",
        )
    writer = gguf.GGUFWriter(path, model.config.model_type, use_temp_file=True)
    writer.add_name(manifest.task.name)
    writer.add_string(MANIFEST_KEY, manifest.model_dump_json())
    writer.add_file_type({"bf16": 32, "f16": 1, "q8_0": 7}[precision])  # llama.cpp's own numbers for "mostly …"
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    n_f16 = _add_tensors(writer, model, precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (f"{n_f16} matrices are f16: q8_0 needs rows of a multiple of 32",) if n_f16 else ()


def pre_tokenizer_name(tokenizer: Any) -> str | None:
    """Return llama.cpp's name for the pre-tokenizer, found from its steps; None if it has none."""
    rule = _backend(tokenizer)["pre_tokenizer"] or {}
    steps = rule["pretokenizers"] if rule.get("type") == "Sequence" else [rule]
    return None if any(step.get("add_prefix_space") for step in steps) else _NAMES.get(tuple(map(_step, steps)))


def _step(step: dict[str, Any]) -> tuple[str, Any]:
    match kind := step.get("type", ""):
        case "ByteLevel":
            return kind, step["use_regex"]
        case "Digits":
            return kind, step["individual_digits"]
        case "Split":
            return kind, step["pattern"].get("Regex")
    return kind, None


def permute_rotary_rows(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Return a Q or K matrix in llama.cpp's order: in each head the rows of the two halves alternate."""
    half = weight.shape[0] // n_heads // 2
    return weight.reshape(n_heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtra("writing a GGUF file", "train") from None
    return gguf


def _problems(tokenizer: Any, config: Any) -> Iterator[str]:
    """Yield what no file can hold; whatever else a reader takes otherwise shows when the file is read back."""
    if config.model_type not in FAMILIES:
        yield f'its architecture is "{config.model_type}"; supported are {", ".join(FAMILIES)}'
    if (kind := _backend(tokenizer)["model"]["type"]) != "BPE" or pre_tokenizer_name(tokenizer) is None:
        yield f"its tokenizer ({kind}) is no byte-level BPE with a pre-tokenizer that llama.cpp has a name for"
    if len(tokenizer) > config.vocab_size or tokenizer.eos_token_id is None:
        yield f"its tokenizer has no end token, or more than the {config.vocab_size} tokens of its weights"


def _backend(tokenizer: Any) -> dict[str, Any]:
    """Return the parts of a tokenizer of `tokenizers`; of any other only its type."""
    import json

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"model": {"type": type(tokenizer).__name__}, "pre_tokenizer": None}
    values: dict[str, Any] = json.loads(backend.to_str())
    return values


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    from gguf import TokenType

    added = tokenizer.added_tokens_decoder
    texts = {at: text for text, at in tokenizer.get_vocab().items()}
    kinds = [TokenType.NORMAL if at in texts else TokenType.UNUSED for at in range(vocab_size)]
    for at, token in added.items():
        kinds[at] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    merges = _backend(tokenizer)["model"]["merges"]
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer) or "")
    writer.add_token_list([texts.get(at, f"[PAD{at}]") for at in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for add, at in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if at is not None:
            add(at)
    writer.add_add_bos_token(tokenizer.bos_token_id is not None)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _add_tensors(writer: gguf.GGUFWriter, model: Any, precision: str) -> int:
    """Add all tensors under llama.cpp's names; return how many matrices are f16 instead of the precision asked for."""
    import gguf

    config, n_f16 = model.config, 0
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[config.model_type]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    wanted = gguf.GGMLQuantizationType[precision.upper()]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # readers take the embeddings where there is no output matrix
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ConfigError(f'the tensor "{name}" has no place in a {config.model_type} GGUF file')
        values = tensor.detach().float().cpu().numpy()
        part = name.split(".")[-2]
        if config.model_type == "llama" and part in heads:
            values = permute_rotary_rows(values, heads[part])
        kind = wanted if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind, n_f16 = gguf.GGMLQuantizationType.F16, n_f16 + 1
        writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
    return n_f16
