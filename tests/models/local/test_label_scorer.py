"""A model read at one position gives the same answer alone, in a batch and in any order, on every engine."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from smallfirst.data.dataset import Dataset
from smallfirst.models.local.label_scorer import LabelScorer

TEXT = "where is my card"


@pytest.fixture
def texts(toy_rows: Dataset) -> list[str]:
    return [example.text * (1 + i % 3) for i, example in enumerate(toy_rows.examples)]


@pytest.fixture
def loaded(tiny_folder: Path, scorer: LabelScorer) -> LabelScorer:
    return LabelScorer.load(tiny_folder, scorer.manifest)


def test_results_do_not_depend_on_batch_or_order(scorer: LabelScorer, texts: list[str]) -> None:
    expected = {text: scorer.score([text])[0] for text in texts}
    scorer.batch_rows = 7
    mixed = random.Random(3).sample(texts, len(texts))
    for text, found in zip(mixed, scorer.score(mixed), strict=True):
        assert found.log_probabilities == pytest.approx(expected[text].log_probabilities, abs=1e-5)
        assert found.n_tokens == expected[text].n_tokens
    assert scorer.score([]) == []


def test_probabilities_are_those_of_the_label_tokens_after_the_prompt(scorer: LabelScorer) -> None:
    ids = [scorer.tokenizer.bos_token_id, *scorer.tokenizer.encode(f"{TEXT} =>", add_special_tokens=False)]
    with torch.inference_mode():
        logits = scorer.model(input_ids=torch.tensor([ids])).logits[0, -1]
    expected = logits[list(scorer.manifest.label_tokens)].softmax(-1)
    (found,) = scorer.score([TEXT])
    assert torch.tensor(found.log_probabilities).exp().tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.n_tokens == len(ids)
    assert found.busy_s > 0


def test_a_loaded_model_is_packed_and_gives_the_same_probabilities(loaded: LabelScorer, texts: list[str]) -> None:
    assert loaded.packed is not None
    plain = LabelScorer(loaded.model, loaded.tokenizer, loaded.manifest)
    assert plain.packed is None
    for found, expected in zip(loaded.score(texts), plain.score(texts), strict=True):
        assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=0.05)  # both in bf16
        assert found.n_tokens == expected.n_tokens


def test_only_the_prefix_of_every_prompt_is_cached(loaded: LabelScorer) -> None:
    assert loaded.prefix == [loaded.tokenizer.bos_token_id]
    assert loaded.packed is not None
    assert loaded.packed._shared.ids == tuple(loaded.prefix)


def test_a_batch_of_several_rows_is_bounded_by_its_tokens(scorer: LabelScorer, texts: list[str]) -> None:
    sizes: list[list[int]] = []
    forward = scorer._forward
    scorer._forward = lambda batch: (sizes.append([len(ids) for ids in batch]), forward(batch))[1]  # type: ignore
    scorer.batch_tokens = 40
    scorer.score(texts)
    assert sum(map(len, sizes)) == len(texts)
    assert all(len(lengths) == 1 or len(lengths) * max(lengths) <= 40 for lengths in sizes)
    assert any(len(lengths) > 1 for lengths in sizes)


def test_a_text_longer_than_the_limit_is_still_answered(scorer: LabelScorer) -> None:
    scorer.manifest = scorer.manifest.model_copy(update={"max_tokens": 20})
    long, short = scorer.score(["where is my card " * 50, "refund"])
    assert long.n_tokens == 20
    assert short.n_tokens < 20
    assert len(long.log_probabilities) == 4
