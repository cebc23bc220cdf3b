"""Write a trained model in a form that other programs load: a transformers folder, or one GGUF file.

An export is complete only once it has been read back, with transformers and where it is installed with llama.cpp. At
each position of the answers to real texts the likeliest token must be the trained model's, but for near ties, and the
probabilities of likely tokens must agree, since a wrong export can give right answers by luck. Its chat template is the
task's own prompt. A model with code tokens generates one, which the manifest (`smallfirst.json`, `smallfirst.manifest`
in GGUF) maps to its label. Calibration and grammars are not exported.
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

from smallfirst.base.errors import ConfigError, SmallfirstError
from smallfirst.base.files import files_sha256, sha256
from smallfirst.base.records import Record
from smallfirst.data.dataset import Message
from smallfirst.models.generation.generator import GenerationRequest, Generator
from smallfirst.models.gguf import pre_tokenizer_name, write_gguf
from smallfirst.models.local import packed_rows
from smallfirst.models.local.tokenizer import encode_chat, encode_prompt, plain_text_options
from smallfirst.models.local.weights import import_transformers, load_merged, load_pretrained, weights_fingerprint
from smallfirst.models.manifest import Manifest, read_manifest, write_manifest
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppProcess
from smallfirst.tasks.task import Task

ExportFormat = Literal["safetensors", "gguf"]
Precision = Literal["bf16", "f16", "q8_0"]

TOP = 20
"""Tokens whose log-probabilities are kept at each position."""
MIN_LOGPROB = math.log(1e-3)
"""Tokens less likely than this are not compared, because rounding is magnified there."""
MAX_REPLY_BYTES = 256 * 1024 * 1024
"""Largest reply of llama.cpp, which lists its whole vocabulary."""
MAX_ANSWER_TOKENS = 64
"""Tokens of a generated answer that are compared."""
NEAR_TIE_NATS = 0.2
"""Two tokens whose log-probabilities differ by no more are a near tie for the trained model."""
MAX_WRONG_SHARE = {"bf16": 0.0, "f16": 0.0, "q8_0": 0.02}
"""Share of rows that may be answered differently, near ties aside, by precision."""
MAX_DIFFERENCE_NATS = {"bf16": 1e-3, "f16": 0.02, "q8_0": 0.75}
"""Largest difference of a likely token's log-probability that the precision of the weights explains."""
LLAMA_CPP_EXTRA_NATS = 0.25
"""Added to it for llama.cpp, whose sums are rounded to the weights' precision as well."""
LLAMA_CPP_TEXTS, LLAMA_CPP_TOP = 16, 100
"""Texts that llama.cpp answers as well, and likeliest tokens that it is asked for in a generated answer."""
MISREAD_PRE_TOKENIZERS = ("smollm",)
"""Pre-tokenizers of GGUF files that transformers takes for others, so its tokens prove nothing about the file."""
WEIGHTS_HINT = "export in bf16; if that fails too, take safetensors: this model is not supported in this format"


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
    model, tokenizer = load_merged(folder)
    model = model.float().cpu()
    tokenizer.chat_template = chat_template(manifest.task, tokenizer)
    original = Original.of(model, tokenizer, manifest, texts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        draft, notes = Path(scratch) / target.name, list[str]()
        if format == "gguf":
            notes += write_gguf(model, tokenizer, manifest, draft, precision=precision)
        else:
            _write_folder(model, tokenizer, manifest, draft, precision)
        del model  # before the export is loaded
        results = [read_by_transformers(original, draft, precision)]
        if format == "gguf":
            results += read_by_llama_cpp(original, draft, precision)
        digest = sha256(draft) if draft.is_file() else files_sha256(draft, draft.glob("*.safetensors"))
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


class Row(NamedTuple):
    """A prompt and the trained model's answer."""

    ids: tuple[int, ...]
    n_prompt: int


class Reference(NamedTuple):
    """The trained model's output at each position of a row's answer."""

    row: Row
    tokens: torch.Tensor
    """Likeliest tokens (positions, at most TOP), best first."""
    log_probabilities: torch.Tensor
    """Their log-probabilities in nats, of the same shape."""


class Difference(NamedTuple):
    """The difference between an export and the trained model on one row."""

    tokens: tuple[int, int] | None
    """Token ids of the trained model and of the export where they first differ; None if they never do."""
    gap_nats: float
    """How much likelier the trained model finds its own token than the export's, at most over the row."""
    max_difference: float
    """Largest difference of a likely token's log-probability, in nats."""


Reader = Callable[[Row], torch.Tensor]
"""Returns the log-probabilities (positions, vocabulary) at each position of a row's answer."""


def torch_reader(model: Any, manifest: Manifest) -> Reader:
    """Return a reader of rows with a model of transformers."""

    @torch.inference_mode()
    def read(row: Row) -> torch.Tensor:
        states = model.model(input_ids=torch.tensor([row.ids[:-1]]), use_cache=False).last_hidden_state[0]
        logits = states[row.n_prompt - 1 :] @ model.get_output_embeddings().weight.T  # (positions, vocabulary)
        return _narrowed(logits, manifest)

    return read


class Original(NamedTuple):
    """The trained model's side of the comparison."""

    manifest: Manifest
    tokenizer: Any
    texts: Sequence[str]
    outputs: list[Reference]
    """Its answer to each text: a code token, or what it generates without a grammar."""
    vocabulary: int
    fingerprint: str

    @classmethod
    def of(cls, model: Any, tokenizer: Any, manifest: Manifest, texts: Sequence[str]) -> Original:
        prompts = [encode_prompt(tokenizer, manifest.task.prompt(text), manifest.max_tokens) for text in texts]
        if manifest.kind == "label_tokens":
            rows = [Row((*ids, manifest.label_tokens[0]), len(ids)) for ids in prompts]  # the last token is not read
        else:
            most = min(MAX_ANSWER_TOKENS, manifest.task.max_answer_tokens)
            answers = Generator(model, tokenizer).generate([GenerationRequest(ids, most) for ids in prompts])
            ends = [(tokenizer.eos_token_id,) if answer.finish_reason == "stop" else () for answer in answers]
            written = [(*answer.token_ids, *end) for answer, end in zip(answers, ends, strict=True)]
            rows = [Row((*ids, *answer), len(ids)) for ids, answer in zip(prompts, written, strict=True)]
        read, outputs = torch_reader(model, manifest), []
        for row in rows:
            seen = read(row)
            best = seen.topk(min(TOP, len(manifest.label_tokens) or seen.shape[1]), dim=-1)
            outputs.append(Reference(row, best.indices, best.values))
        return cls(manifest, tokenizer, texts, outputs, model.config.vocab_size, weights_fingerprint(model))

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


class Result(NamedTuple):
    """The comparison by one engine."""

    engine: str
    differences: list[Difference]
    notes: tuple[str, ...] = ()


def read_by_transformers(original: Original, draft: Path, precision: str) -> Result:
    """Return how transformers reads the export. Raise SmallfirstError if that differs too much."""
    model, tokenizer = _load(draft)
    notes: tuple[str, ...] = ()
    if draft.is_file() and pre_tokenizer_name(original.tokenizer) in MISREAD_PRE_TOKENIZERS:
        notes = ("transformers splits text by another rule than this file says; llama.cpp follows it",)
    else:
        chat = [[Message(role="user", content=text)] for text in original.texts]
        ids = {turns[0].content: encode_chat(tokenizer, turns, max_tokens=1 << 30) for turns in chat}
        original.check_tokens(ids.__getitem__, "transformers")
    read = torch_reader(model, original.manifest)
    differences = [compare(output, read(output.row)) for output in original.outputs]
    check_differences(differences, precision, original.tokenizer, engine="transformers")
    if precision == "bf16" and weights_fingerprint(model) != original.fingerprint:
        raise _export_error("read by transformers, some weights differ from the trained ones", [], hint=WEIGHTS_HINT)
    return Result("transformers", differences, notes)


def read_by_llama_cpp(original: Original, draft: Path, precision: str) -> list[Result]:
    """Return how llama.cpp reads the export; nothing if it is not installed. Raise SmallfirstError, Unavailable."""
    if importlib.util.find_spec("xllamacpp") is None:
        return []
    outputs, prompt = original.outputs[:LLAMA_CPP_TEXTS], original.manifest.task.prompt
    with _llama_cpp(draft, max(len(output.row.ids) for output in outputs) + 1) as post:

        def tokens(text: str) -> list[int]:
            return list(post("/tokenize", content=prompt(text), add_special=True, parse_special=True)["tokens"])

        def chat_prompt(text: str) -> str:
            return str(post("/apply-template", messages=[{"role": "user", "content": text}])["prompt"])

        original.check_tokens(tokens, "llama.cpp")
        others = [str(i) for i, text in enumerate(original.texts, 1) if chat_prompt(text) != prompt(text)]
        differences = [compare(output, _read_llama_cpp(post, output.row, original)) for output in outputs]
    check_differences(differences, precision, original.tokenizer, engine="llama.cpp", extra_nats=LLAMA_CPP_EXTRA_NATS)
    # It does not trim rare white space around a text as Python does.
    note = f"llama.cpp's chat endpoint does not prompt as in training on text {', '.join(others)}"
    return [Result("llama.cpp", differences, (note,) if others else ())]


def compare(seen: Reference, read: torch.Tensor) -> Difference:
    """Return the difference between the trained model's output and `read`, the export's."""
    own, chosen = seen.tokens[:, 0], read.argmax(dim=-1)
    likely = seen.log_probabilities >= MIN_LOGPROB
    likely[:, 0] = True
    off = (read.gather(1, seen.tokens) - seen.log_probabilities).abs()[likely].max()
    wrong = (chosen != own).nonzero()[:, 0].tolist()
    if not wrong:
        return Difference(None, 0.0, float(off))
    its = seen.log_probabilities.masked_fill(seen.tokens != chosen[:, None], -torch.inf).amax(dim=-1)
    gap = (seen.log_probabilities[:, 0] - its)[wrong].max()
    return Difference((int(own[wrong[0]]), int(chosen[wrong[0]])), float(gap), float(off))


def check_differences(
    found: Sequence[Difference], precision: str, tokenizer: Any, *, engine: str, extra_nats: float = 0.0
) -> None:
    """Raise SmallfirstError naming every row that differs by more than the precision explains."""
    wrong = [i for i, row in enumerate(found) if row.tokens and not row.gap_nats <= NEAR_TIE_NATS]
    limit = MAX_DIFFERENCE_NATS[precision] + extra_nats
    far = [i for i, row in enumerate(found) if not row.max_difference <= limit]  # true for NaN too
    if len(wrong) <= MAX_WRONG_SHARE[precision] * len(found) and not far:
        return
    lines = []
    for i in sorted({*wrong, *far}):
        line = f"text {i + 1}: log-probabilities differ by up to {found[i].max_difference:.3g} nats"
        if pair := found[i].tokens:
            exported, trained = (tokenizer.decode([token]) for token in reversed(pair))
            line += f'; it says "{exported}", the trained model "{trained}", {found[i].gap_nats:.3g} nats likelier'
        lines.append(line)
    raise _export_error(
        f"read by {engine}, the {precision} export does not answer as the trained model on {len(lines)} of "
        f"{len(found)} texts (allowed: {limit:g} nats, other answers on {MAX_WRONG_SHARE[precision]:.0%} of texts)",
        lines,
        hint=WEIGHTS_HINT,
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


def _read_llama_cpp(post: Post, row: Row, original: Original) -> torch.Tensor:
    """Return log-probabilities as a Reader does; of a generated answer, those beyond the likeliest are -inf."""
    has_codes = bool(original.manifest.label_tokens)
    n_top = original.vocabulary if has_codes else LLAMA_CPP_TOP
    # llama.cpp reports no probabilities without a whole character in the answer, so it is forced to generate an
    # "a". The probabilities are from before that.
    settings = {"n_predict": 1, "n_probs": n_top, "temperature": 0, "logit_bias": [["a", 1e6]]}
    found = torch.full((len(row.ids) - row.n_prompt, original.vocabulary), -torch.inf)
    for at in range(len(found)):
        reply = post("/completion", prompt=row.ids[: row.n_prompt + at], **settings)
        for token in reply["completion_probabilities"][0]["top_logprobs"]:
            found[at, token["id"]] = token["logprob"]
    return _narrowed(found, original.manifest) if has_codes else found


def _narrowed(logits: torch.Tensor, manifest: Manifest) -> torch.Tensor:
    """Return log-probabilities over the vocabulary, or over the code tokens alone if the model has them."""
    if manifest.label_tokens:
        codes = list(manifest.label_tokens)
        logits = torch.full_like(logits, -torch.inf).index_copy_(1, torch.tensor(codes), logits[:, codes])
    return logits.log_softmax(dim=-1)


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
        attn_implementation=packed_rows.register(),
        **settings,
    )
    return model.eval(), tokenizer
