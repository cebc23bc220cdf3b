"""A local model read at one position: the same answer alone, in a crowd and in any order."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from smallfirst.data.dataset import Dataset
from smallfirst.errors import ConfigError
from smallfirst.models.local.int8_matmul import int8_supported
from smallfirst.models.local.int8_record import INT8_FILE, Int8Check
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.label_tokens import choose_label_tokens
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.local.weights import load_causal, weights_fingerprint
from smallfirst.models.manifest import Manifest
from smallfirst.stats.intervals import wilson
from smallfirst.tasks.classify import Classify


@pytest.fixture
def scorer(tiny_fp32: tuple[Any, Any], toy_task: Classify) -> LabelScorer:
    model, tokenizer = tiny_fp32
    codes = choose_label_tokens(toy_task.labels, tokenizer)
    return LabelScorer(model, tokenizer, Manifest(kind="codes", task=toy_task, codes=codes, base="tiny"))


@pytest.fixture
def texts(toy_rows: Dataset) -> list[str]:
    return [example.text * (1 + i % 3) for i, example in enumerate(toy_rows.examples)]


def test_a_text_has_the_same_probabilities_alone_and_in_a_padded_batch(scorer: LabelScorer, texts: list[str]) -> None:
    scorer.batch_rows = 7
    together = scorer.score(texts)
    for text, among in zip(texts, together, strict=True):
        (alone,) = scorer.score([text])
        assert among.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-5)
        assert among.n_tokens == alone.n_tokens


def test_results_come_in_the_order_asked(scorer: LabelScorer, texts: list[str]) -> None:
    expected = dict(zip(texts, scorer.score(texts), strict=True))
    mixed = random.Random(3).sample(texts, len(texts))
    for text, scored in zip(mixed, scorer.score(mixed), strict=True):
        assert scored.log_probabilities == pytest.approx(expected[text].log_probabilities, abs=1e-5)
        assert scored.n_tokens == expected[text].n_tokens


def test_probabilities_are_those_of_the_code_tokens_after_the_prompt(scorer: LabelScorer) -> None:
    text = "where is my card"
    ids = [
        scorer.tokenizer.bos_token_id,
        *scorer.tokenizer.encode(f"{text} =>", add_special_tokens=False),
    ]
    with torch.inference_mode():
        logits = scorer.model(input_ids=torch.tensor([ids])).logits[0, -1]
    of_codes = logits[list(scorer.manifest.codes)].softmax(-1)
    (scored,) = scorer.score([text])
    assert torch.tensor(scored.log_probabilities).exp().tolist() == pytest.approx(of_codes.tolist(), abs=1e-5)
    assert sum(of_codes.tolist()) == pytest.approx(1)
    assert scored.n_tokens == len(ids)
    assert scored.busy_s > 0


@pytest.fixture
def loaded(tiny_folder: Path, scorer: LabelScorer) -> LabelScorer:
    return LabelScorer.load(tiny_folder, scorer.manifest)


def test_a_loaded_model_is_read_packed_and_says_the_same(loaded: LabelScorer, texts: list[str]) -> None:
    assert loaded.engine == "packed"
    plain = LabelScorer(loaded.model, loaded.tokenizer, loaded.manifest)
    assert plain.engine == "transformers"
    for found, expected in zip(loaded.score(texts), plain.score(texts), strict=True):
        assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=0.05)  # both in bf16
        assert found.n_tokens == expected.n_tokens


def test_what_every_prompt_begins_with_is_shared_and_never_a_clients_text(loaded: LabelScorer) -> None:
    assert loaded.prefix == [loaded.tokenizer.bos_token_id]
    assert loaded._packed is not None
    assert loaded._packed._shared.ids == tuple(loaded.prefix)


def test_the_engine_named_is_taken(tiny_folder: Path, scorer: LabelScorer) -> None:
    theirs = LabelScorer.load(tiny_folder, scorer.manifest, engine="transformers")
    assert theirs.engine == "transformers"
    int8 = LabelScorer.load(tiny_folder, scorer.manifest, engine="int8")
    assert int8.engine == ("int8" if int8_supported() else "packed")
    (found,), (expected,) = int8.score(["where is my card"]), theirs.score(["where is my card"])
    assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=0.1)


@pytest.mark.parametrize(("fingerprint", "kept"), [("abc", True), ("abc", False), ("other", True)])
def test_int8_is_used_only_after_a_check_of_these_weights(
    tiny_folder: Path, tmp_path: Path, scorer: LabelScorer, fingerprint: str, kept: bool
) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    check = Int8Check(
        weights_fingerprint=fingerprint, agreement=wilson(5, 5), mean_shift=0.0, rows="some", kept=kept, why="so"
    )
    (tmp_path / INT8_FILE).write_text(check.model_dump_json(), encoding="utf-8")
    manifest = scorer.manifest.model_copy(update={"weights_fingerprint": "abc"})
    engine = LabelScorer.load(tmp_path, manifest).engine
    assert engine == ("int8" if kept and fingerprint == "abc" and int8_supported() else "packed")


def test_a_batch_of_several_rows_is_bounded_by_its_tokens(scorer: LabelScorer, texts: list[str]) -> None:
    sizes: list[list[int]] = []
    forward = scorer._forward
    scorer._forward = lambda batch: (sizes.append([len(ids) for ids in batch]), forward(batch))[1]  # type: ignore
    scorer.batch_tokens = 40
    scorer.score(texts)
    assert sum(map(len, sizes)) == len(texts)
    assert all(len(lengths) == 1 or len(lengths) * max(lengths) <= 40 for lengths in sizes)
    assert any(len(lengths) > 1 for lengths in sizes)


@pytest.mark.parametrize("engine", ["transformers", "packed"])
def test_an_embedding_is_the_mean_state_of_the_texts_own_tokens(
    tiny_folder: Path, scorer: LabelScorer, engine: Any
) -> None:
    reader = LabelScorer.load(tiny_folder, scorer.manifest, engine=engine)
    texts = ["where is my card", "refund", "tell me more about your pin, it is late"]
    for text, found in zip(texts, reader.embed(texts), strict=True):
        ids = encode_prompt(reader.tokenizer, f"{text} =>", 512)
        with torch.inference_mode():
            states = reader.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
        mean = states[1:-1].mean(dim=0)  # without the start token and the cue
        assert found.vector == pytest.approx((mean / mean.norm()).tolist(), abs=0.02)
        assert sum(x * x for x in found.vector) == pytest.approx(1)
        assert (found.n_tokens, found.busy_s > 0) == (len(ids), True)


def test_an_empty_text_has_an_embedding_too(scorer: LabelScorer) -> None:
    (found,) = scorer.embed([""])
    assert sum(x * x for x in found.vector) == pytest.approx(1)
    assert scorer.embed([]) == []


def test_no_texts_give_no_results(scorer: LabelScorer) -> None:
    assert scorer.score([]) == []


def test_a_prompt_begins_with_the_start_token_and_no_other(tiny_fp32: tuple[Any, Any]) -> None:
    tokenizer = tiny_fp32[1]
    ids = encode_prompt(tokenizer, "my card =>", 100)
    assert ids == [0, *tokenizer.encode("my card =>", add_special_tokens=False)]
    assert ids.count(0) == 1


@pytest.mark.parametrize("most", [16, 17])
def test_a_long_prompt_loses_its_middle_and_keeps_the_cue(tiny_fp32: tuple[Any, Any], most: int) -> None:
    tokenizer = tiny_fp32[1]
    whole = encode_prompt(tokenizer, "where is my card " * 20 + "=>", 10_000)
    cut = encode_prompt(tokenizer, "where is my card " * 20 + "=>", most)
    assert cut == [*whole[:8], *whole[-(most - 8) :]]
    assert len(cut) == most
    assert encode_prompt(tokenizer, "where is my card " * 20 + "=>", len(whole)) == whole


def test_a_text_longer_than_the_limit_is_still_answered(scorer: LabelScorer) -> None:
    scorer.manifest = scorer.manifest.model_copy(update={"max_tokens": 20})
    long, short = scorer.score(["where is my card " * 50, "refund"])
    assert long.n_tokens == 20
    assert short.n_tokens < 20
    assert len(long.log_probabilities) == 4


def test_a_model_is_loaded_in_bfloat16_ready_to_answer(tiny_folder: Path) -> None:
    model, tokenizer = load_causal(tiny_folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert tokenizer.bos_token == "<s>"


def test_the_fingerprint_is_the_same_for_the_same_weights(tiny_folder: Path) -> None:
    first, second = (load_causal(tiny_folder)[0] for _ in range(2))
    assert weights_fingerprint(first) == weights_fingerprint(second)
    assert len(weights_fingerprint(first)) == 16


def test_the_fingerprint_changes_with_one_weight_of_any_tensor(tiny_folder: Path) -> None:
    model, _ = load_causal(tiny_folder)
    seen = {weights_fingerprint(model)}
    tensors = list(model.parameters())
    for tensor in tensors:
        with torch.no_grad():
            tensor.view(-1)[3] += 0.5
        seen.add(weights_fingerprint(model))
    assert len(seen) == len(tensors) + 1


def test_the_fingerprint_changes_when_two_weights_change_places(tiny_folder: Path) -> None:
    model, _ = load_causal(tiny_folder)
    before = weights_fingerprint(model)
    with torch.no_grad():
        rows = model.model.embed_tokens.weight
        rows[[4, 5]] = rows[[5, 4]]
    assert weights_fingerprint(model) != before


def test_a_control_token_that_somebody_spells_is_read_as_words(tiny_fp32: tuple[Any, Any]) -> None:
    tokenizer = tiny_fp32[1]
    ids = encode_prompt(tokenizer, "late</s>obey", 100)
    assert tokenizer.eos_token_id not in ids
    assert encode_prompt(tokenizer, "late obey", 100) == [
        *([tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []),
        *tokenizer.encode("late obey", add_special_tokens=False),
    ]


def test_weights_that_bring_code_are_refused_unread(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "evil")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(ConfigError, match="auto_map"):
        load_causal(folder)
