"""A local model read at one position: the same answer alone, in a crowd and in any order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from smallfirst.data.dataset import Dataset
from smallfirst.models.codes import choose_codes
from smallfirst.models.local import LabelScorer, encode_prompt, load_causal, weights_fingerprint
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.classify import Classify


@pytest.fixture
def scorer(tiny_fp32: tuple[Any, Any], toy_task: Classify) -> LabelScorer:
    model, tokenizer = tiny_fp32
    codes = choose_codes(toy_task.labels, tokenizer)
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
