"""A model read at one position gives the same answer alone, in a batch and in any order, on every engine."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from smallfirst.data.dataset import Dataset
from smallfirst.models.local.int8_matmul import int8_supported
from smallfirst.models.local.label_scorer import Engine, LabelScorer
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.manifest import INT8_FILE, Int8Check
from smallfirst.stats.intervals import wilson

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
    assert scorer.score([]) == scorer.embed([]) == []


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
    assert loaded.engine == "packed"
    plain = LabelScorer(loaded.model, loaded.tokenizer, loaded.manifest)
    assert plain.engine == "transformers"
    for found, expected in zip(loaded.score(texts), plain.score(texts), strict=True):
        assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=0.05)  # both in bf16
        assert found.n_tokens == expected.n_tokens


def test_only_the_prefix_of_every_prompt_is_cached(loaded: LabelScorer) -> None:
    assert loaded.prefix == [loaded.tokenizer.bos_token_id]
    assert loaded._packed is not None
    assert loaded._packed._shared.ids == tuple(loaded.prefix)


def test_an_engine_may_be_named(tiny_folder: Path, scorer: LabelScorer) -> None:
    theirs = LabelScorer.load(tiny_folder, scorer.manifest, engine="transformers")
    assert theirs.engine == "transformers"
    int8 = LabelScorer.load(tiny_folder, scorer.manifest, engine="int8")
    assert int8.engine == ("int8" if int8_supported() else "packed")
    (found,), (expected,) = int8.score([TEXT]), theirs.score([TEXT])
    assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=0.1)


@pytest.mark.parametrize(("fingerprint", "kept"), [("abc", True), ("abc", False), ("other", True)])
def test_int8_is_used_only_after_a_check_of_these_weights(
    tiny_folder: Path, tmp_path: Path, scorer: LabelScorer, fingerprint: str, kept: bool
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    check = Int8Check(
        weights_fingerprint=fingerprint, agreement=wilson(5, 5), mean_shift=0.0, rows="some", kept=kept, why="so"
    )
    check.save(folder / INT8_FILE)
    engine = LabelScorer.load(folder, scorer.manifest.model_copy(update={"weights_fingerprint": "abc"})).engine
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
    tiny_folder: Path, scorer: LabelScorer, engine: Engine
) -> None:
    reader = LabelScorer.load(tiny_folder, scorer.manifest, engine=engine)
    texts = [TEXT, "refund", "tell me more about your pin, it is late", ""]
    for text, found in zip(texts, reader.embed(texts), strict=True):
        assert sum(x * x for x in found.vector) == pytest.approx(1)
        if not text:
            continue
        ids = encode_prompt(reader.tokenizer, f"{text} =>", 512)
        with torch.inference_mode():
            states = reader.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
        mean = states[1:-1].mean(dim=0)  # without the start token and the cue
        assert found.vector == pytest.approx((mean / mean.norm()).tolist(), abs=0.02)
        assert (found.n_tokens, found.busy_s > 0) == (len(ids), True)


def test_a_text_longer_than_the_limit_is_still_answered(scorer: LabelScorer) -> None:
    scorer.manifest = scorer.manifest.model_copy(update={"max_tokens": 20})
    long, short = scorer.score(["where is my card " * 50, "refund"])
    assert long.n_tokens == 20
    assert short.n_tokens < 20
    assert len(long.log_probabilities) == 4
