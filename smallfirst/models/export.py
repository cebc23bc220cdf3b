"""Write a trained model in a form that other programs load: a transformers folder, or one GGUF file.

An export is complete only once it has been read back: a folder by transformers, a GGUF file by llama.cpp. At each
position of the trained model's answers to real texts the likely tokens must have its log-probabilities, since a wrong
export can give right answers by luck. Its chat template is the task's own prompt. A model with code tokens generates
one, which the manifest (`smallfirst.json`, `smallfirst.manifest` in GGUF) maps to its label. Calibration and grammars
are not exported.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from smallfirst.base.errors import ConfigError, MissingExtra, SmallfirstError
from smallfirst.base.files import files_sha256, sha256
from smallfirst.base.records import Record
from smallfirst.data.dataset import Message
from smallfirst.models.generation.generator import GenerationRequest, Generator
from smallfirst.models.gguf import write_gguf
from smallfirst.models.local import packed_rows
from smallfirst.models.local.tokenizer import encode_chat, encode_prompt, plain_text_options
from smallfirst.models.local.weights import import_transformers, load_merged, load_pretrained
from smallfirst.models.manifest import Manifest, read_manifest, write_manifest
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppProcess
from smallfirst.tasks.task import Task

ExportFormat = Literal["safetensors", "gguf"]
Precision = Literal["bf16", "f16", "q8_0"]

MIN_LOGPROB = math.log(1e-3)
"""Tokens less likely than this are not compared, because rounding is magnified there."""
MAX_REPLY_BYTES = 256 * 1024 * 1024
"""Largest reply of llama.cpp, which lists its whole vocabulary."""
MAX_ANSWER_TOKENS = 64
"""Tokens of a generated answer that are compared."""
MAX_DIFFERENCE_NATS = {"bf16": 1e-3, "f16": 0.02, "q8_0": 0.75}
"""Largest difference of a likely token's log-probability that the precision of the weights explains."""
LLAMA_CPP_EXTRA_NATS = 0.25
"""Added to it for llama.cpp, whose sums are rounded to the weights' precision as well."""
LLAMA_CPP_TEXTS, LLAMA_CPP_TOP = 16, 100
"""Texts that llama.cpp answers (it tokenizes all), and likeliest tokens that it is asked for in a generated answer."""


class ExportReport(Record):
    """A complete export, and how close it is to the trained model."""

    format: ExportFormat
    """`safetensors`: a transformers folder · `gguf`: one file."""
    precision: Precision
    path: Path
    """Folder or file."""
    sha256: str
    """Of the GGUF file; of a folder, of the lines of `sha256sum` on its safetensors files, sorted by name."""
    n_texts: int
    """Texts whose answers were compared."""
    max_difference: float
    """Largest difference of a likely token's log-probability, in nats."""
    engine: Literal["transformers", "llama.cpp"]
    """The program that read the export for the comparison."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, a sentence each."""


def export(
    folder: Path, target: Path, *, format: ExportFormat, precision: Precision, texts: Sequence[str]
) -> ExportReport:
    """Write the model of `folder` to `target`, which must not exist, and compare the two on `texts`.

    Raise ConfigError if it cannot be written so, MissingExtra for a GGUF file without llama.cpp, SmallfirstError naming
    texts that are answered differently; `target` stays absent.
    """
    manifest = read_manifest(folder)
    if problems := list(_problems(manifest, target, format, precision, texts)):
        raise ConfigError(f"{folder} cannot be exported:\n  " + "\n  ".join(problems))
    if format == "gguf" and importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra("reading a GGUF file back", "llama")
    model, tokenizer = load_merged(folder)
    model = model.float().cpu()
    tokenizer.chat_template = chat_template(manifest.task, tokenizer)
    original = Original.of(model, tokenizer, manifest, texts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        draft = Path(scratch) / target.name
        if format == "gguf":
            notes = write_gguf(model, tokenizer, manifest, draft, precision=precision)
            del model  # before the export is loaded
            read = read_by_llama_cpp(original, draft)
        else:
            _write_folder(model, tokenizer, manifest, draft, precision)
            del model
            read, notes = read_by_transformers(original, draft), ()
        found = [likely_difference(own, its) for own, its in zip(original.answers, read, strict=False)]
        check_differences(found, format, precision)
        digest = sha256(draft) if draft.is_file() else files_sha256(draft, draft.glob("*.safetensors"))
        os.replace(draft, target)
    if manifest.label_tokens:
        notes += ("an answer is one code token; the exported manifest maps it to its label",)
    return ExportReport(
        format=format,
        precision=precision,
        path=target,
        sha256=digest,
        n_texts=len(found),
        max_difference=max(found),
        engine="llama.cpp" if format == "gguf" else "transformers",
        notes=notes,
    )


def _write_folder(model: Any, tokenizer: Any, manifest: Manifest, draft: Path, precision: str) -> None:
    """Write a folder that transformers loads."""
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
    if manifest.kind not in ("label_tokens", "generative"):
        yield (
            f'it is of kind "{manifest.kind}", which no other engine runs: copy the folder, or export the fine-tuned '
            "language model of the run, if there is one, by --candidate"
        )
    if target.exists():
        yield f"{target} exists; choose another path"
    if format == "safetensors" and precision == "q8_0":
        yield "q8_0 is a precision of gguf; safetensors takes bf16 or f16"
    if format == "gguf" and target.suffix != ".gguf":
        yield f"{target} must end in .gguf"
    if not texts:
        yield "there are no texts to compare it on; give rows that the model was not trained on"


class ComparedRow(NamedTuple):
    """A prompt, the trained model's answer, and what it found there."""

    ids: tuple[int, ...]
    """Tokens of the prompt and of the answer; of a model with code tokens, the prompt's alone."""
    n_prompt: int
    log_probabilities: Sequence[float]
    """In nats, of each token of the answer; or of each code, among the codes."""


class Original(NamedTuple):
    """The trained model's side of the comparison."""

    manifest: Manifest
    tokenizer: Any
    texts: Sequence[str]
    answers: list[ComparedRow]
    vocabulary: int

    @classmethod
    def of(cls, model: Any, tokenizer: Any, manifest: Manifest, texts: Sequence[str]) -> Original:
        prompts = [encode_prompt(tokenizer, manifest.task.prompt(text), manifest.max_tokens) for text in texts]
        written: list[tuple[int, ...]] = [()] * len(prompts)
        if not manifest.label_tokens:
            most = min(MAX_ANSWER_TOKENS, manifest.task.max_answer_tokens)
            answers = Generator(model, tokenizer).generate([GenerationRequest(ids, most) for ids in prompts])
            ends = [(tokenizer.eos_token_id,) if answer.finish_reason == "stop" else () for answer in answers]
            written = [(*answer.token_ids, *end) for answer, end in zip(answers, ends, strict=True)]
        asked = [ComparedRow((*ids, *answer), len(ids), ()) for ids, answer in zip(prompts, written, strict=True)]
        answered = [one._replace(log_probabilities=read_row(model, manifest, one)) for one in asked]
        return cls(manifest, tokenizer, texts, answered, model.config.vocab_size)

    def check_tokens(self, encode: Callable[[str], list[int]], engine: str) -> None:
        """Raise SmallfirstError naming every text that `encode` splits into other tokens than in training."""
        lines = []
        for number, text in enumerate(self.texts, start=1):
            prompt = self.manifest.task.prompt(text)
            if plain_text_options(self.tokenizer, prompt):
                continue  # a control token spelled out in a text is plain text here, and the token to others
            wanted, got = encode_prompt(self.tokenizer, prompt, 1 << 30), encode(text)
            if wanted != got:
                pairs = enumerate(zip(wanted, got, strict=False))
                at = next((i for i, pair in pairs if pair[0] != pair[1]), len(wanted))
                lines.append(f"text {number}: from token {at + 1} on, {len(got)} tokens instead of {len(wanted)}")
        if lines:
            raise _export_error(
                f"{engine} splits {len(lines)} of {len(self.texts)} texts into other tokens than in training",
                lines,
                hint="export as safetensors; or bring texts into Unicode's NFC before they reach the model",
            )


@torch.inference_mode()
def read_row(model: Any, manifest: Manifest, row: ComparedRow) -> list[float]:
    """Return the log-probabilities of a row's answer by a model of transformers."""
    states = model.model(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
    logits = states[row.n_prompt - 1 :] @ model.get_output_embeddings().weight.T  # (positions, vocabulary)
    if manifest.label_tokens:
        return list(logits[0, list(manifest.label_tokens)].log_softmax(dim=-1).tolist())
    answer = torch.tensor(row.ids[row.n_prompt :])
    return list(logits[:-1].log_softmax(dim=-1).gather(1, answer[:, None])[:, 0].tolist())


def read_by_transformers(original: Original, folder: Path) -> list[list[float]]:
    """Return how transformers reads a folder. Raise SmallfirstError for texts that it splits into other tokens."""
    transformers = import_transformers("Exporting a model")
    tokenizer = load_pretrained(transformers.AutoTokenizer, folder)

    def encode(text: str) -> list[int]:
        return encode_chat(tokenizer, [Message(role="user", content=text)], max_tokens=1 << 30)

    original.check_tokens(encode, "transformers")
    settings = {"dtype": torch.float32, "attn_implementation": packed_rows.register()}
    model = load_pretrained(transformers.AutoModelForCausalLM, folder, **settings).eval()
    return [read_row(model, original.manifest, row) for row in original.answers]


def read_by_llama_cpp(original: Original, file: Path) -> list[list[float]]:
    """Return how llama.cpp reads the first answers. Raise SmallfirstError, Unavailable."""
    rows, prompt = original.answers[:LLAMA_CPP_TEXTS], original.manifest.task.prompt
    with _llama_cpp(file, max(len(row.ids) for row in rows) + 1) as post:

        def tokens(text: str) -> list[int]:
            return list(post("/tokenize", content=prompt(text), add_special=True, parse_special=True)["tokens"])

        original.check_tokens(tokens, "llama.cpp")
        return [_read_llama_cpp(post, row, original) for row in rows]


def likely_difference(own: ComparedRow, its: Sequence[float]) -> float:
    """Return the largest difference, in nats, of the log-probabilities that are likely by the trained model."""
    pairs = zip(own.log_probabilities, its, strict=True)
    differences = [abs(mine - other) for mine, other in pairs if mine >= MIN_LOGPROB]
    return math.nan if any(map(math.isnan, differences)) else max(differences, default=0.0)


def check_differences(found: Sequence[float], format: ExportFormat, precision: str) -> None:
    """Raise SmallfirstError naming every text that differs by more than the precision explains."""
    limit = MAX_DIFFERENCE_NATS[precision] + (LLAMA_CPP_EXTRA_NATS if format == "gguf" else 0.0)
    far = [i for i, nats in enumerate(found, 1) if not nats <= limit]  # true for NaN too
    if far:
        raise _export_error(
            f"the {precision} {format} export does not answer as the trained model on {len(far)} of {len(found)} texts "
            f"(allowed: {limit:g} nats)",
            [f"text {i}: log-probabilities differ by up to {found[i - 1]:.3g} nats" for i in far],
            hint="export in bf16; if that fails too, take safetensors: this model is not supported in this format",
        )


def _export_error(message: str, lines: Sequence[str], *, hint: str) -> SmallfirstError:
    """Return the error of an export that differs from the trained model; it names the first 20 rows."""
    more = [f"… and {len(lines) - 20} more"] if len(lines) > 20 else []
    return SmallfirstError("\n  ".join([message, *lines[:20], *more, "nothing was written"]), hint=hint)


Post = Callable[..., dict[str, Any]]
"""Sends a body to a path of llama.cpp and returns the reply."""


@contextmanager
def _llama_cpp(path: Path, context_tokens: int) -> Iterator[Post]:
    """Run llama.cpp on the file. Raise Unavailable if it does not load."""
    threads = torch.get_num_threads()
    config = LlamaCppConfig(path=path, slots=1, context_tokens=max(64, context_tokens), threads=threads)
    process = LlamaCppProcess.start(config)
    try:
        with process.session(config.timeout_s) as session:

            def post(place: str, **body: Any) -> dict[str, Any]:
                response = session.send("POST", place, body)
                content = session.read(response, max_bytes=MAX_REPLY_BYTES)
                if response.status != 200:
                    said = content[:200].decode(errors="replace")
                    raise SmallfirstError(f"llama.cpp refused {place} ({response.status}): {said}")
                values: dict[str, Any] = json.loads(content)
                return values

            yield post
    finally:
        process.stop()


def _read_llama_cpp(post: Post, row: ComparedRow, original: Original) -> list[float]:
    """Return log-probabilities as `read_row` does; a token beyond the likeliest ones has -inf."""
    codes = original.manifest.label_tokens
    # llama.cpp reports no probabilities without a whole character in the answer, so it is forced to generate an
    # "a". The probabilities are from before that.
    n_top = original.vocabulary if codes else LLAMA_CPP_TOP
    settings = {"n_predict": 1, "n_probs": n_top, "temperature": 0, "logit_bias": [["a", 1e6]]}
    found = []
    for at in range(row.n_prompt, row.n_prompt + 1 if codes else len(row.ids)):
        reply = post("/completion", prompt=row.ids[:at], **settings)
        top = {token["id"]: token["logprob"] for token in reply["completion_probabilities"][0]["top_logprobs"]}
        if codes:
            among = torch.tensor([top.get(code, -math.inf) for code in codes], dtype=torch.float64)
            return list(among.log_softmax(dim=-1).tolist())
        found.append(float(top.get(row.ids[at], -math.inf)))
    return found
