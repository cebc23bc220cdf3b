"""Exports of tiny models, read back by llama.cpp: equal where right, refused where broken."""

import importlib.util
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers

from smallfirst.base.errors import ConfigError, MissingExtra, SmallfirstError
from smallfirst.models import export as exports
from smallfirst.models.export import ComparedRow, check_differences, export, likely_difference
from smallfirst.models.local.tokenizer import choose_label_tokens, encode_prompt
from smallfirst.models.manifest import Manifest, read_manifest, write_manifest
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify

ANSWER = Answer(name="rules", max_answer_tokens=6)
TEXTS = ("where is my card", "a refund of 1,250.75, please", "  été 😀 日本 ", "</s> it's lost", "the euro rate again")
needs_llama = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")


@pytest.fixture
def trained(tiny_folder: Path, tmp_path: Path, toy_task: Classify) -> Path:
    """A folder as training writes it, answers by code tokens."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "trained"))
    codes = choose_label_tokens(toy_task.labels, transformers.AutoTokenizer.from_pretrained(folder))
    write_manifest(folder, Manifest(kind="label_tokens", task=toy_task, label_tokens=codes, base="tiny"))
    return folder


@pytest.fixture
def writing(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder as training writes it, answers are written."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "writing"))
    write_manifest(folder, Manifest(kind="generative", task=ANSWER, base="tiny"))
    return folder


def as_family(folder: Path, kind: str, **settings: Any) -> None:
    """Replace the folder's model by a seeded one of another family or shape, biases drawn too."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **shape | settings)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(weight, std=0.5)
    (folder / "model.safetensors").unlink()
    model.to(torch.bfloat16).save_pretrained(folder)


def load(path: Path) -> tuple[Any, Any]:
    """Model in fp32 and tokenizer, by transformers alone."""
    place, settings = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **settings)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(place, **settings)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return found


def assert_equal_logits(folder: Path, exported: Path) -> None:
    (before, tokenizer), (after, _) = load(folder), load(exported)
    ids = encode_prompt(tokenizer, "can you help with a card =>", 512)
    assert torch.equal(logits(before, ids), logits(after, ids))


def assert_nothing_left(target: Path) -> None:
    assert not target.exists()
    assert not list(target.parent.glob(".export-*"))


@needs_llama
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_gguf_has_the_logits_and_tokens_of_the_trained_model(trained: Path, tmp_path: Path, kind: str) -> None:
    as_family(trained, kind, vocab_size=510, tie_word_embeddings=kind == "llama")
    report = export(trained, tmp_path / "m.gguf", precision="bf16", texts=TEXTS)
    assert_equal_logits(trained, tmp_path / "m.gguf")
    assert (report.n_texts, report.path, len(report.sha256)) == (5, tmp_path / "m.gguf", 64)
    assert 0 < report.max_difference < 0.1
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    names = {tensor.name for tensor in reader.tensors}
    assert ("output.weight" in names) == (kind == "qwen2")  # the other's is tied
    assert ("blk.1.attn_q.bias" in names) == (kind == "qwen2")
    field = reader.fields["tokenizer.ggml.token_type"]
    kinds = [int(field.parts[at][0]) for at in field.data]
    n_tokens = len(transformers.AutoTokenizer.from_pretrained(trained))
    assert (kinds[:3], kinds[n_tokens:]) == ([3, 3, 1], [5] * (510 - n_tokens))  # control, normal; unused
    kept = Manifest.model_validate_json(bytes(reader.fields[exports.MANIFEST_KEY].parts[-1]))
    assert kept == read_manifest(trained)


@needs_llama
def test_matrices_take_the_precision_where_their_rows_can_be_cut_in_blocks(trained: Path, tmp_path: Path) -> None:
    as_family(trained, "llama", intermediate_size=48)
    report = export(trained, tmp_path / "m.gguf", precision="q8_0", texts=TEXTS)
    assert report.notes[0].startswith("2 matrices are f16")  # one `down_proj` in each layer
    found = {t.name: (len(t.shape), t.tensor_type.name) for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert found.pop("blk.0.ffn_down.weight") == found.pop("blk.1.ffn_down.weight") == (2, "F16")
    assert set(found.values()) == {(1, "F32"), (2, "Q8_0")}


@needs_llama
def test_wrong_order_of_rows_is_refused_and_nothing_is_left(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "permute_rotary_rows", lambda weight, n_heads: weight)
    monkeypatch.setitem(exports.MAX_DIFFERENCE_NATS, "bf16", 0.02)
    with pytest.raises(SmallfirstError, match="the bf16 export does not answer as the trained model on 5 of 5"):
        export(trained, tmp_path / "m.gguf", precision="bf16", texts=TEXTS)
    assert_nothing_left(tmp_path / "m.gguf")


@needs_llama
@pytest.mark.parametrize(
    ("method", "broken", "said"),
    [
        ("add_token_merges", lambda add: lambda writer, merges: add(writer, merges[:40]), r"text 1: from token \d+ on"),
        ("add_add_bos_token", lambda add: lambda writer, value: None, "text 1: from token 1 on"),
    ],
)
def test_a_file_that_splits_texts_otherwise_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, broken: Any, said: str
) -> None:
    monkeypatch.setattr(gguf.GGUFWriter, method, broken(getattr(gguf.GGUFWriter, method)))
    with pytest.raises(SmallfirstError, match=rf"llama.cpp splits 2 of 2 texts into other tokens.*\n  {said}"):
        export(trained, tmp_path / "m.gguf", precision="bf16", texts=("where is my card", "refund request"))
    assert_nothing_left(tmp_path / "m.gguf")


def test_a_file_that_nothing_could_read_back_is_not_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="llama"):
        export(trained, tmp_path / "m.gguf", precision="bf16", texts=TEXTS)


def test_an_architecture_that_gguf_cannot_hold_is_named(trained: Path, tmp_path: Path) -> None:
    as_family(trained, "mistral", sliding_window=None)
    model, tokenizer = load(trained)
    with pytest.raises(ConfigError, match='its architecture is "mistral"; supported are llama, qwen2'):
        exports.write_gguf(model, tokenizer, read_manifest(trained), tmp_path / "m.gguf", precision="bf16")


# --- how text is split ---------------------------------------------------------------------------------------------


def byte_level(**settings: Any) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | settings)


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (byte_level, "gpt-2"),
        (lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]), "smollm"),
        (
            lambda: pre_tokenizers.Sequence(
                [pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated"), byte_level(use_regex=False)]
            ),
            "llama-bpe",
        ),
        (lambda: byte_level(add_prefix_space=True), None),
        (pre_tokenizers.Whitespace, None),
    ],
)
def test_pre_tokenizer_is_named_by_its_steps(
    tiny_fp32: tuple[Any, Any], rule: Callable[[], Any], name: str | None
) -> None:
    _, tokenizer = tiny_fp32
    tokenizer.backend_tokenizer.pre_tokenizer = rule()
    assert exports.pre_tokenizer_name(tokenizer) == name


def test_pre_tokenizer_of_qwen_as_transformers_builds_it() -> None:
    assert exports.pre_tokenizer_name(transformers.Qwen2Tokenizer(vocab={"a": 0}, merges=[])) == "qwen2"


# --- what is refused before anything is written ----------------------------------------------------------------------


def test_every_wrong_argument_is_named_at_once(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    write_manifest(trained, read_manifest(trained).model_copy(update={"kind": "words"}))
    with pytest.raises(ConfigError) as caught:
        export(trained, tmp_path / "there", precision="q8_0", texts=())
    for said in ("there exists", "must end in .gguf", "no texts to compare it on", 'of kind "words", which no other'):
        assert said in str(caught.value)


# --- the comparison ------------------------------------------------------------------------------------------------


def test_likely_tokens_are_compared_and_differ_by_no_more_than_the_precision_explains() -> None:
    own = ComparedRow((7, 0, 1), 1, (-0.5, -9.0))
    assert likely_difference(own, (-0.9, -4.0)) == pytest.approx(0.4)  # not 5: e^-9 is no likely token
    assert likely_difference(own, (-math.inf, -9.0)) == math.inf
    assert math.isnan(likely_difference(own, (math.nan, -9.0)))
    check_differences([0.02, 0.25], "bf16")
    for wrong in (0.26, math.inf, math.nan):
        with pytest.raises(SmallfirstError, match=r"on 1 of 2 texts \(allowed: 0\.25 nats\)\n  text 2: log-prob"):
            check_differences([0.0, wrong], "bf16")


@needs_llama
@pytest.mark.parametrize("task", [ANSWER, Classify(name="toy", labels=("a", "b"))])
def test_a_chat_endpoint_of_llama_cpp_asks_as_in_training(writing: Path, tmp_path: Path, task: Any) -> None:
    model, tokenizer = load(writing)
    tokenizer.chat_template = exports.chat_template(task, tokenizer)
    manifest = read_manifest(writing)
    exports.write_gguf(model, tokenizer, manifest, tmp_path / "m.gguf", precision="bf16")
    turns = [{"role": "user", "content": "  where is it\n"}]
    with exports._llama_cpp(tmp_path / "m.gguf", 64) as post:
        asked = post("/apply-template", messages=turns)["prompt"]
    assert asked.removeprefix("<s>") == task.prompt("  where is it\n")
