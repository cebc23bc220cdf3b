"""Write a trained model as one GGUF file, which llama.cpp and whatever builds on it load.

An export is complete only once llama.cpp has read it back: at each position of the trained model's answers to real
texts the likely tokens must have its log-probabilities, since a wrong export can give right answers by luck. Its chat
template is the task's own prompt. A model with code tokens generates one, which the manifest in the file
(`smallfirst.manifest`) maps to its label. Calibration and grammars are not exported.

llama.cpp rotates neighbouring rows of Q and K where transformers rotates rows half a head apart, so Llama's are
reordered. The file holds only the *name* of its pre-tokenizer.
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

import gguf
import numpy as np
import torch

from smallfirst.base.errors import ConfigError, MissingExtra, SmallfirstError
from smallfirst.base.files import sha256
from smallfirst.base.records import Record
from smallfirst.models.generation.generator import GenerationRequest, Generator
from smallfirst.models.local.tokenizer import encode_prompt, plain_text_options
from smallfirst.models.local.weights import load_merged
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppServer
from smallfirst.tasks.task import Task

Precision = Literal["bf16", "f16", "q8_0"]

MIN_LOGPROB = math.log(1e-3)
"""Tokens less likely than this are not compared, because rounding is magnified there."""
MAX_REPLY_BYTES = 256 * 1024 * 1024
"""Largest reply of llama.cpp, which lists its whole vocabulary."""
MAX_ANSWER_TOKENS = 64
"""Tokens of a generated answer that are compared."""
MAX_DIFFERENCE_NATS = {"bf16": 0.25, "f16": 0.27, "q8_0": 1.0}
"""Largest difference of a likely token's log-probability that the precision explains: that of the weights, and that of
llama.cpp's sums, which are rounded to it as well."""
COMPARED_TEXTS, TOP_TOKENS = 16, 100
"""Texts that llama.cpp answers (it tokenizes all), and likeliest tokens that it is asked for in a generated answer."""


class ExportReport(Record):
    """A complete export, and how close it is to the trained model."""

    precision: Precision
    path: Path
    sha256: str
    n_texts: int
    """Texts whose answers were compared."""
    max_difference: float
    """Largest difference of a likely token's log-probability, in nats."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, a sentence each."""


def export(folder: Path, target: Path, *, precision: Precision, texts: Sequence[str]) -> ExportReport:
    """Write the model of `folder` to the file `target`, which must not exist, and compare the two on `texts`.

    Raise ConfigError if it cannot be written so, MissingExtra without llama.cpp, SmallfirstError naming texts that are
    answered differently; `target` stays absent.
    """
    manifest = read_manifest(folder)
    if problems := list(_problems(manifest, target, texts)):
        raise ConfigError(f"{folder} cannot be exported:\n  " + "\n  ".join(problems))
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra("reading a GGUF file back", "llama")
    model, tokenizer = load_merged(folder)
    model = model.float().cpu()
    tokenizer.chat_template = chat_template(manifest.task, tokenizer)
    answers, vocabulary = trained_answers(model, tokenizer, manifest, texts), model.config.vocab_size
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        draft = Path(scratch) / target.name
        notes = write_gguf(model, tokenizer, manifest, draft, precision=precision)
        del model  # before the export is loaded
        compared = answers[:COMPARED_TEXTS]
        with _llama_cpp(draft, max(len(row.ids) for row in compared) + 1) as post:

            def encode(prompt: str) -> list[int]:
                return list(post("/tokenize", content=prompt, add_special=True, parse_special=True)["tokens"])

            _check_tokens(tokenizer, manifest.task, texts, encode)
            found = [likely_difference(row, _read_back(post, row, manifest, vocabulary)) for row in compared]
        check_differences(found, precision)
        digest = sha256(draft)
        os.replace(draft, target)
    if manifest.label_tokens:
        notes += ("an answer is one code token; the exported manifest maps it to its label",)
    return ExportReport(
        precision=precision, path=target, sha256=digest, n_texts=len(found), max_difference=max(found), notes=notes
    )


def chat_template(task: Task, tokenizer: Any) -> str:
    """Return a Jinja template that prompts with the last message as in training: start token, the task's prompt."""
    mark = "text-stands-here"
    before, _, after = task.prompt(mark).partition(mark)
    content = "messages[-1]['content']" + (" | trim" if task.prompt(f" {mark} ") == task.prompt(mark) else "")
    start = ["bos_token"] if tokenizer.bos_token else []
    parts = [json.dumps(text, ensure_ascii=False) if text else "" for text in (before, after)]
    return "".join(f"{{{{ {part} }}}}" for part in (*start, parts[0], content, parts[1]) if part)


def _problems(manifest: Manifest, target: Path, texts: Sequence[str]) -> Iterator[str]:
    if manifest.kind not in ("label_tokens", "generative"):
        yield (
            f'it is of kind "{manifest.kind}", which no other engine runs: copy the folder, or export the fine-tuned '
            "language model of the run, if there is one, by --candidate"
        )
    if target.exists():
        yield f"{target} exists; choose another path"
    if target.suffix != ".gguf":
        yield f"{target} must end in .gguf"
    if not texts:
        yield "there are no texts to compare it on; give rows that the model was not trained on"


# The comparison


class ComparedRow(NamedTuple):
    """A prompt, the trained model's answer, and what it found there."""

    ids: tuple[int, ...]
    """Tokens of the prompt and of the answer; of a model with code tokens, the prompt's alone."""
    n_prompt: int
    log_probabilities: Sequence[float]
    """In nats, of each token of the answer; or of each code, among the codes."""


def trained_answers(model: Any, tokenizer: Any, manifest: Manifest, texts: Sequence[str]) -> list[ComparedRow]:
    """Return what the trained model answers to the texts, and how likely."""
    prompts = [encode_prompt(tokenizer, manifest.task.prompt(text), manifest.max_tokens) for text in texts]
    written: list[tuple[int, ...]] = [()] * len(prompts)
    if not manifest.label_tokens:
        most = min(MAX_ANSWER_TOKENS, manifest.task.max_answer_tokens)
        answers = Generator(model, tokenizer).generate([GenerationRequest(ids, most) for ids in prompts])
        ends = [(tokenizer.eos_token_id,) if answer.finish_reason == "stop" else () for answer in answers]
        written = [(*answer.token_ids, *end) for answer, end in zip(answers, ends, strict=True)]
    rows = [ComparedRow((*ids, *answer), len(ids), ()) for ids, answer in zip(prompts, written, strict=True)]
    return [row._replace(log_probabilities=_read_row(model, manifest, row)) for row in rows]


@torch.inference_mode()
def _read_row(model: Any, manifest: Manifest, row: ComparedRow) -> list[float]:
    states = model.model(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
    logits = states[row.n_prompt - 1 :] @ model.get_output_embeddings().weight.T  # (positions, vocabulary)
    if manifest.label_tokens:
        return list(logits[0, list(manifest.label_tokens)].log_softmax(dim=-1).tolist())
    answer = torch.tensor(row.ids[row.n_prompt :])
    return list(logits[:-1].log_softmax(dim=-1).gather(1, answer[:, None])[:, 0].tolist())


def _check_tokens(tokenizer: Any, task: Task, texts: Sequence[str], encode: Callable[[str], list[int]]) -> None:
    """Raise SmallfirstError naming every text that `encode` splits into other tokens than in training."""
    lines = []
    for number, text in enumerate(texts, start=1):
        prompt = task.prompt(text)
        if plain_text_options(tokenizer, prompt):
            continue  # a control token spelled out in a text is plain text here, and the token to others
        wanted, got = encode_prompt(tokenizer, prompt, 1 << 30), encode(prompt)
        if wanted != got:
            pairs = enumerate(zip(wanted, got, strict=False))
            at = next((i for i, pair in pairs if pair[0] != pair[1]), len(wanted))
            lines.append(f"text {number}: from token {at + 1} on, {len(got)} tokens instead of {len(wanted)}")
    if lines:
        raise _export_error(
            f"llama.cpp splits {len(lines)} of {len(texts)} texts into other tokens than in training",
            lines,
            hint="bring texts into Unicode's NFC before they reach the model",
        )


def likely_difference(own: ComparedRow, its: Sequence[float]) -> float:
    """Return the largest difference, in nats, of the log-probabilities that are likely by the trained model."""
    pairs = zip(own.log_probabilities, its, strict=True)
    differences = [abs(mine - other) for mine, other in pairs if mine >= MIN_LOGPROB]
    return math.nan if any(map(math.isnan, differences)) else max(differences, default=0.0)


def check_differences(found: Sequence[float], precision: str) -> None:
    """Raise SmallfirstError naming every text that differs by more than the precision explains."""
    limit = MAX_DIFFERENCE_NATS[precision]
    far = [i for i, nats in enumerate(found, 1) if not nats <= limit]  # true for NaN too
    if far:
        raise _export_error(
            f"the {precision} export does not answer as the trained model on {len(far)} of {len(found)} texts "
            f"(allowed: {limit:g} nats)",
            [f"text {i}: log-probabilities differ by up to {found[i - 1]:.3g} nats" for i in far],
            hint="export in bf16; if that fails too, this model is not supported by llama.cpp",
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
    server = LlamaCppServer(config)
    try:
        with server.process().session(config.timeout_s) as session:

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
        server.stop()


def _read_back(post: Post, row: ComparedRow, manifest: Manifest, vocabulary: int) -> list[float]:
    """Return llama.cpp's log-probabilities of a row's answer; a token beyond the likeliest ones has -inf."""
    codes = manifest.label_tokens
    # llama.cpp reports no probabilities without a whole character in the answer, so it is forced to generate an
    # "a". The probabilities are from before that.
    n_top = vocabulary if codes else TOP_TOKENS
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


# The file

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


def write_gguf(model: Any, tokenizer: Any, manifest: Manifest, path: Path, *, precision: Precision) -> tuple[str, ...]:
    """Write the file; return notes for its user. Raise ConfigError naming everything GGUF cannot hold."""
    if problems := list(_unwritable(tokenizer, model.config)):
        raise ConfigError(
            "this model cannot be written as GGUF:\n  " + "\n  ".join(problems),
            hint="serve its folder, or through vLLM",
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


def _unwritable(tokenizer: Any, config: Any) -> Iterator[str]:
    """Yield what no file can hold; whatever else a reader takes otherwise shows when the file is read back."""
    if config.model_type not in FAMILIES:
        yield f'its architecture is "{config.model_type}"; supported are {", ".join(FAMILIES)}'
    if (kind := _backend(tokenizer)["model"]["type"]) != "BPE" or pre_tokenizer_name(tokenizer) is None:
        yield f"its tokenizer ({kind}) is no byte-level BPE with a pre-tokenizer that llama.cpp has a name for"
    if len(tokenizer) > config.vocab_size or tokenizer.eos_token_id is None:
        yield f"its tokenizer has no end token, or more than the {config.vocab_size} tokens of its weights"


def _backend(tokenizer: Any) -> dict[str, Any]:
    """Return the parts of a tokenizer of `tokenizers`; of any other only its type."""
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
    added = tokenizer.added_tokens_decoder
    texts = {at: text for text, at in tokenizer.get_vocab().items()}
    kinds = [gguf.TokenType.NORMAL if at in texts else gguf.TokenType.UNUSED for at in range(vocab_size)]
    for at, token in added.items():
        kinds[at] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
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
