"""Read an export back with transformers and with llama.cpp, and hold it against the trained model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smallfirst.data.dataset import Message
from smallfirst.models.export.gguf import pre_tokenizer_name
from smallfirst.models.export.parity import (
    LLAMA_CPP_EXTRA_NATS,
    WEIGHTS_HINT,
    Difference,
    LlamaCppReader,
    Reference,
    check_differences,
    check_tokens,
    compare,
    export_error,
    reference_outputs,
    torch_reader,
)
from smallfirst.models.local import attention
from smallfirst.models.local.tokenizer import encode_chat
from smallfirst.models.local.weights import import_transformers, load_pretrained, weights_fingerprint
from smallfirst.models.manifest import Manifest, write_manifest

N_LLAMA_CPP_TEXTS = 16
"""Texts that llama.cpp answers as well."""
MISREAD_PRE_TOKENIZERS = ("smollm",)
"""Pre-tokenizers of GGUF files that transformers takes for others, so its tokens prove nothing about the file."""


class Original(NamedTuple):
    """The trained model's side of the comparison."""

    manifest: Manifest
    tokenizer: Any
    texts: Sequence[str]
    outputs: list[Reference]
    vocabulary: int
    fingerprint: str

    @classmethod
    def of(cls, model: Any, tokenizer: Any, manifest: Manifest, texts: Sequence[str]) -> Original:
        outputs = reference_outputs(model, tokenizer, manifest, texts)
        return cls(manifest, tokenizer, texts, outputs, model.config.vocab_size, weights_fingerprint(model))


class Result(NamedTuple):
    """The comparison by one engine."""

    engine: str
    differences: list[Difference]
    notes: tuple[str, ...] = ()


def write_folder(original: Original, model: Any, draft: Path, precision: str) -> None:
    """Write a folder that transformers loads."""
    tokenizer, manifest = original.tokenizer, original.manifest
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = import_transformers("Exporting a model").GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=1 if manifest.label_tokens else manifest.task.max_answer_tokens,
    )
    model.to(torch.bfloat16 if precision == "bf16" else torch.float16).save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    write_manifest(draft, manifest)


def read_by_transformers(original: Original, draft: Path, precision: str) -> Result:
    """Return how transformers reads the export. Raise SmallfirstError if that differs too much."""
    model, tokenizer = _load(draft)
    notes: tuple[str, ...] = ()
    if draft.is_file() and pre_tokenizer_name(original.tokenizer) in MISREAD_PRE_TOKENIZERS:
        notes = ("transformers splits text by another rule than this file says; llama.cpp follows it",)
    else:

        def encode(text: str) -> list[int]:
            return encode_chat(tokenizer, [Message(role="user", content=text)], max_tokens=1 << 30)

        check_tokens(encode, original.tokenizer, original.manifest, original.texts, engine="transformers")
    read = torch_reader(model, original.manifest)
    differences = [compare(output, read(output.row)) for output in original.outputs]
    check_differences(differences, precision, original.tokenizer, engine="transformers")
    if precision == "bf16" and weights_fingerprint(model) != original.fingerprint:
        raise export_error("read by transformers, some weights differ from the trained ones", [], hint=WEIGHTS_HINT)
    return Result("transformers", differences, notes)


def read_by_llama_cpp(original: Original, draft: Path, precision: str) -> list[Result]:
    """Return how llama.cpp reads the export; nothing if it is not installed. Raise SmallfirstError."""
    if importlib.util.find_spec("xllamacpp") is None:
        return []
    outputs, manifest, tokenizer = original.outputs[:N_LLAMA_CPP_TEXTS], original.manifest, original.tokenizer
    prompt, context_tokens = manifest.task.prompt, max(len(output.row.ids) for output in outputs) + 1
    with LlamaCppReader(draft, manifest, vocabulary=original.vocabulary, context_tokens=context_tokens) as llama:
        check_tokens(lambda text: llama.tokens(prompt(text)), tokenizer, manifest, original.texts, engine="llama.cpp")
        others = [str(i) for i, text in enumerate(original.texts, 1) if llama.chat_prompt(text) != prompt(text)]
        differences = [compare(output, llama.read(output.row)) for output in outputs]
    check_differences(differences, precision, tokenizer, engine="llama.cpp", extra_nats=LLAMA_CPP_EXTRA_NATS)
    # It does not trim rare white space around a text as Python does.
    note = f"llama.cpp's chat endpoint does not prompt as in training on text {', '.join(others)}"
    return [Result("llama.cpp", differences, (note,) if others else ())]


def _load(draft: Path) -> tuple[Any, Any]:
    transformers = import_transformers("Exporting a model")
    folder, settings = draft, {}
    if draft.is_file():
        folder, settings = draft.parent, {"gguf_file": draft.name}
    tokenizer = load_pretrained(transformers.AutoTokenizer, folder, **settings)
    if draft.is_file() and hasattr(transformers, "GgufConfig"):  # or else matrices may stay packed
        settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = load_pretrained(
        transformers.AutoModelForCausalLM,
        folder,
        dtype=torch.float32,
        attn_implementation=attention.register(),
        **settings,
    )
    return model.eval(), tokenizer
