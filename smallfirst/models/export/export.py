"""Write a trained model in a form that other programs load: a transformers folder, or one GGUF file.

An export is complete only once it has been read back and answers real texts as the trained model does. Its chat
template is the task's own prompt. A model with code tokens generates one, which the manifest (`smallfirst.json`,
`smallfirst.manifest` in GGUF) maps to its label. Calibration and grammars are not exported.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from smallfirst.errors import ConfigError
from smallfirst.models.manifest import Manifest, read_manifest, write_manifest
from smallfirst.records import Record
from smallfirst.tasks.task import Task

ExportFormat = Literal["safetensors", "gguf"]
Precision = Literal["bf16", "f16", "q8_0"]


class ExportReport(Record):
    """A complete export, and how close it is to the trained model."""

    format: ExportFormat
    """`safetensors`: a transformers folder · `gguf`: one file."""
    precision: Precision
    path: Path
    """Folder or file."""
    sha256: str
    """Hash of the weights: the GGUF file, or the safetensors files in order of their names."""
    n_texts: int
    same_answers: float
    """Share of texts with the same answer, near ties counted as different, in [0, 1]; the lowest over engines."""
    max_difference: float
    """Largest difference of a likely token's log-probability, in nats; the largest over engines."""
    engine: str
    """Programs that read the export for the comparison: `transformers`, or `transformers, llama.cpp`."""
    n_llama_cpp_texts: int = 0
    """Texts that llama.cpp answered; it tokenizes all of them."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, a sentence each."""


def export(
    folder: Path, target: Path, *, format: ExportFormat, precision: Precision, texts: Sequence[str]
) -> ExportReport:
    """Write the model of `folder` to `target`, which must not exist, and compare the two on `texts`.

    Raise ConfigError if it cannot be written so, SmallfirstError naming texts answered differently; `target` stays
    absent.
    """
    manifest = read_manifest(folder)
    if problems := list(_problems(manifest, target, format, precision, texts)):
        raise ConfigError(f"{folder} cannot be exported:\n  " + "\n  ".join(problems))
    from smallfirst.models.local.adapters import load_merged

    model, tokenizer = load_merged(folder)
    from smallfirst.models.export.parity import Original, read_by_llama_cpp, read_by_transformers

    model = model.float().cpu()
    tokenizer.chat_template = chat_template(manifest.task, tokenizer)
    original = Original.of(model, tokenizer, manifest, texts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        draft, notes = Path(scratch) / target.name, list[str]()
        if format == "gguf":
            from smallfirst.models.export.gguf import write_gguf

            notes += write_gguf(model, tokenizer, manifest, draft, precision=precision)
        else:
            _write_folder(model, tokenizer, manifest, draft, precision)
        del model  # before the export is loaded
        results = [read_by_transformers(original, draft, precision)]
        if format == "gguf":
            results += read_by_llama_cpp(original, draft, precision)
        digest = _sha256(draft)
        os.replace(draft, target)
    notes += [note for result in results for note in result.notes]
    if manifest.label_tokens:
        notes.append("an answer is one code token; the exported manifest maps it to its label")
    if format == "gguf" and len(results) == 1:
        notes.append('llama.cpp has not read it: pip install "smallfirst[llama]" and export again')
    return ExportReport(
        format=format,
        precision=precision,
        path=target,
        sha256=digest,
        n_texts=len(texts),
        same_answers=min(sum(row.tokens is None for row in one.differences) / len(one.differences) for one in results),
        max_difference=max(row.max_difference for one in results for row in one.differences),
        engine=", ".join(result.engine for result in results),
        n_llama_cpp_texts=sum(len(result.differences) for result in results[1:]),
        notes=tuple(notes),
    )


def _write_folder(model: Any, tokenizer: Any, manifest: Manifest, draft: Path, precision: str) -> None:
    """Write a folder that transformers loads."""
    import torch

    from smallfirst.models.local.weights import import_transformers

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


def chat_template(task: Task, tokenizer: Any) -> str:
    """Return a Jinja template that prompts with the last message as in training: start token, the task's prompt."""
    mark = "text-stands-here"
    before, _, after = task.prompt(mark).partition(mark)
    content = "messages[-1]['content']" + (" | trim" if task.prompt(f" {mark} ") == task.prompt(mark) else "")
    start = ["bos_token"] if tokenizer.bos_token else []
    parts = [json.dumps(text, ensure_ascii=False) if text else "" for text in (before, after)]
    return "".join(f"{{{{ {part} }}}}" for part in (*start, parts[0], content, parts[1]) if part)


def _problems(
    manifest: Manifest, target: Path, format: ExportFormat, precision: Precision, texts: Sequence[str]
) -> Iterator[str]:
    if manifest.kind in ("words", "encoder"):
        yield (
            "it is a linear model, which no other engine runs: copy the folder (linear.safetensors with weights and "
            "bias, words.json with the vocabulary), or export the fine-tuned model: --candidate small"
        )
    elif manifest.kind not in ("label_tokens", "generative"):
        yield f'it is of kind "{manifest.kind}"; only "label_tokens" and "generative" can be exported'
    if target.exists():
        yield f"{target} exists; choose another path"
    if format == "safetensors" and precision == "q8_0":
        yield "q8_0 is a precision of gguf; safetensors takes bf16 or f16"
    if format == "gguf" and target.suffix != ".gguf":
        yield f"{target} must end in .gguf"
    if not texts:
        yield "there are no texts to compare it on; give rows that the model was not trained on"


def _sha256(draft: Path) -> str:
    digest = hashlib.sha256()
    for part in [draft] if draft.is_file() else sorted(draft.glob("*.safetensors")):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
