"""A trained model in a form that other programs load: a plain transformers folder, or one GGUF file.

Nothing counts as exported before it was read back and answered real texts as the trained model does. The chat template
that travels along is the task's own prompt: a fine-tuned model was trained on nothing else, and the base model's
template would ask it in a way it has never seen. So any chat endpoint asks it right.

A model that answers by code tokens says one token; the manifest (`smallfirst.json` in the folder, `smallfirst.manifest`
in the file) tells which label it stands for. Calibrated confidence and grammars do not travel.

Cost: the model twice in fp32, one after the other, and the texts read by each.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from smallfirst.data.dataset import Message
from smallfirst.errors import ConfigError
from smallfirst.models.manifest import Manifest, read_manifest, write_manifest
from smallfirst.records import Record
from smallfirst.tasks.task import Task

if TYPE_CHECKING:
    from smallfirst.models.export.parity import Difference, Reference

ExportFormat = Literal["safetensors", "gguf"]
Precision = Literal["bf16", "f16", "q8_0"]

N_LLAMA_CPP_TEXTS = 16
"""Texts that are answered by llama.cpp as well."""
MISREAD_PRE_TOKENIZERS = ("smollm",)
"""Split rules of GGUF files that transformers reads as another rule, so its tokens prove nothing about the file."""


class ExportReport(Record):
    """A finished export, and how near it is to the trained model."""

    format: ExportFormat
    """`safetensors`: a transformers folder · `gguf`: one file."""
    precision: Precision
    """Of the matrices."""
    path: Path
    """Folder or file."""
    sha256: str
    """Of the weights: the GGUF file, or the safetensors files in order of their names."""
    n_texts: int
    """Texts compared."""
    same_answers: float
    """Share in [0, 1] of texts answered alike, near ties not taken out; of several engines the lowest."""
    max_difference: float
    """Largest difference of a likely token's log-probability, in nats; of several engines the largest."""
    engine: str
    """What read the export for the comparison: `transformers`, or `transformers, llama.cpp`."""
    n_llama_cpp_texts: int = 0
    """Texts of which llama.cpp was asked for an answer; it makes tokens of all of them."""
    notes: tuple[str, ...] = ()
    """What a user should know, a sentence each."""


def export(
    folder: Path, target: Path, *, format: ExportFormat, precision: Precision, texts: Sequence[str]
) -> ExportReport:
    """The model of `folder` written to `target`, which must not exist, and compared with it on `texts`.

    Raises ConfigError if it cannot be written so, SmallfirstError naming the texts that it answers otherwise. Then
    nothing is left at `target`.
    """
    manifest = read_manifest(folder)
    if problems := list(_problems(manifest, target, format, precision, texts)):
        raise ConfigError(f"{folder} cannot be exported so:\n  " + "\n  ".join(problems))
    from smallfirst.models.export.parity import reference_outputs
    from smallfirst.models.local.weights import load_causal, weights_fingerprint

    model, tokenizer = load_causal(folder)
    model = model.float().cpu()
    tokenizer.chat_template = chat_template(manifest.task, tokenizer)
    seen = reference_outputs(model, tokenizer, manifest, texts)
    job = _Job(manifest, tokenizer, precision, texts, seen, model.config.vocab_size, weights_fingerprint(model))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        draft = Path(scratch) / target.name
        if format == "gguf":
            from smallfirst.models.export.gguf import write_gguf

            notes = write_gguf(model, tokenizer, manifest, draft, precision=precision)
            del model  # before the export is loaded
            readings = [_read_by_transformers(job, draft), *_read_by_llama(job, draft)]
        else:
            notes = _write_folder(job, model, draft)
            del model
            readings = [_read_by_transformers(job, draft)]
        digest = _sha256(draft)
        os.replace(draft, target)
    return _report(job, readings, notes, format=format, path=target, sha256=digest)


def chat_template(task: Task, tokenizer: Any) -> str:
    """A chat template (Jinja) that asks as in training: the start token, and the task's prompt of the last message."""
    mark = "text-stands-here"
    before, _, after = task.prompt(mark).partition(mark)
    content = "messages[-1]['content']" + (" | trim" if task.prompt(f" {mark} ") == task.prompt(mark) else "")
    start = ["bos_token"] if tokenizer.bos_token else []
    parts = [json.dumps(text, ensure_ascii=False) if text else "" for text in (before, after)]
    return "".join(f"{{{{ {part} }}}}" for part in (*start, parts[0], content, parts[1]) if part)


class _Job(NamedTuple):
    """What an export is held against."""

    manifest: Manifest
    tokenizer: Any
    precision: Precision
    texts: Sequence[str]
    seen: list[Reference]
    vocabulary: int
    fingerprint: str


class _Reading(NamedTuple):
    """What one engine found."""

    engine: str
    found: list[Difference]
    notes: tuple[str, ...] = ()


def _problems(
    manifest: Manifest, target: Path, format: ExportFormat, precision: Precision, texts: Sequence[str]
) -> Iterator[str]:
    if manifest.kind not in ("codes", "writes"):
        yield f'it is of kind "{manifest.kind}"; only "codes" and "writes" are exported'
    if target.exists():
        yield f"{target} exists; name another place"
    if format == "safetensors" and precision == "q8_0":
        yield "q8_0 is a precision of gguf; safetensors takes bf16 or f16"
    if format == "gguf" and target.suffix != ".gguf":
        yield f"{target} must end in .gguf"
    if not texts:
        yield "no texts to compare it on; give rows that the model was not trained on"


def _write_folder(job: _Job, model: Any, draft: Path) -> tuple[str, ...]:
    """A folder that transformers loads; returns no notes."""
    from smallfirst.models.local.weights import import_transformers

    transformers = import_transformers("Exporting a model")
    import torch

    tokenizer = job.tokenizer
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=1 if job.manifest.codes else job.manifest.task.max_answer_tokens,
    )
    model.to(torch.bfloat16 if job.precision == "bf16" else torch.float16).save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    write_manifest(draft, job.manifest)
    return ()


def _read_by_transformers(job: _Job, draft: Path) -> _Reading:
    from smallfirst.models.export.gguf import pre_tokenizer_name
    from smallfirst.models.export.parity import (
        WEIGHTS_HINT,
        check_differences,
        check_tokens,
        compare,
        export_error,
        torch_reader,
    )
    from smallfirst.models.local.chat_template import encode_chat
    from smallfirst.models.local.weights import weights_fingerprint

    model, tokenizer = _load(draft)
    notes: tuple[str, ...] = ()
    if draft.is_file() and pre_tokenizer_name(job.tokenizer) in MISREAD_PRE_TOKENIZERS:
        notes = ("transformers splits text by another rule than this file says; llama.cpp follows it",)
    else:

        def encode(text: str) -> list[int]:
            return encode_chat(tokenizer, [Message(role="user", content=text)], max_tokens=1 << 30)

        check_tokens(encode, job.tokenizer, job.manifest, job.texts, engine="transformers")
    read = torch_reader(model, job.manifest)
    found = [compare(seen, read(seen.row)) for seen in job.seen]
    check_differences(found, job.precision, job.tokenizer, engine="transformers")
    if job.precision == "bf16" and weights_fingerprint(model) != job.fingerprint:
        raise export_error("read by transformers, some weights are others than the trained ones", [], hint=WEIGHTS_HINT)
    return _Reading("transformers", found, notes)


def _read_by_llama(job: _Job, draft: Path) -> list[_Reading]:
    """What llama.cpp finds; nothing if it is not installed."""
    from smallfirst.models.export.parity import (
        LLAMA_CPP_EXTRA_NATS,
        LlamaCppReader,
        check_differences,
        check_tokens,
        compare,
    )

    if importlib.util.find_spec("xllamacpp") is None:
        return []
    asked = job.seen[:N_LLAMA_CPP_TEXTS]
    prompt = job.manifest.task.prompt
    room = max(len(seen.row.ids) for seen in asked) + 1
    with LlamaCppReader(draft, job.manifest, vocabulary=job.vocabulary, context_tokens=room) as llama:
        check_tokens(
            lambda text: llama.tokens(prompt(text)), job.tokenizer, job.manifest, job.texts, engine="llama.cpp"
        )
        other = [i for i, text in enumerate(job.texts, 1) if llama.chat_prompt(text) != prompt(text)]
        found = [compare(seen, llama.read(seen.row)) for seen in asked]
    check_differences(found, job.precision, job.tokenizer, engine="llama.cpp", extra_nats=LLAMA_CPP_EXTRA_NATS)
    reading = _Reading("llama.cpp", found)
    if other:  # rare white space around a text, which it does not trim as Python does
        note = f"llama.cpp's chat endpoint asks otherwise than in training on text {', '.join(map(str, other))}"
        reading = reading._replace(notes=(note,))
    return [reading]


def _load(draft: Path) -> tuple[Any, Any]:
    """Model in fp32, on the processor, and tokenizer, as any user of transformers would load them."""
    from smallfirst.models.local import attention
    from smallfirst.models.local.weights import import_transformers

    transformers = import_transformers("Exporting a model")
    import torch

    place, settings = draft, {}
    if draft.is_file():
        place, settings = draft.parent, {"gguf_file": draft.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True, **settings)
    if draft.is_file() and hasattr(transformers, "GgufConfig"):  # else matrices may stay packed, in a module of its own
        settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        place,
        dtype=torch.float32,
        local_files_only=True,
        attn_implementation=attention.register(),
        **settings,
    )
    return model.eval(), tokenizer


def _report(
    job: _Job, readings: Sequence[_Reading], notes: Sequence[str], *, format: ExportFormat, path: Path, sha256: str
) -> ExportReport:
    llama = [reading for reading in readings if reading.engine == "llama.cpp"]
    said = [*notes, *(note for reading in readings for note in reading.notes)]
    if job.manifest.codes:
        said.append("an answer is one code token; the manifest that travels along says which label it means")
    if format == "gguf" and not llama:
        said.append('llama.cpp has not read it: pip install "smallfirst[llama]" and export again')
    return ExportReport(
        format=format,
        precision=job.precision,
        path=path,
        sha256=sha256,
        n_texts=len(job.texts),
        same_answers=min(sum(row.tokens is None for row in one.found) / len(one.found) for one in readings),
        max_difference=max(row.max_difference for one in readings for row in one.found),
        engine=", ".join(reading.engine for reading in readings),
        n_llama_cpp_texts=sum(len(reading.found) for reading in llama),
        notes=tuple(said),
    )


def _sha256(draft: Path) -> str:
    digest = hashlib.sha256()
    for part in [draft] if draft.is_file() else sorted(draft.glob("*.safetensors")):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
