"""CTranslate2 computes the states that transformers computes, in float32 to rounding and in int8 to a few steps."""

import importlib.util
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from smallfirst.models.encoder.ctranslate2_engine import CTranslate2Encoder, unsupported_reason
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder

TEXTS = ["where is my card, it is late", "refund", "tell me more about your refund " * 8]


@pytest.fixture(scope="module")
def mpnet_folder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Path:
    made = tmp_path_factory.mktemp("mpnet")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_encoder_folder)
    config = transformers.MPNetConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    transformers.MPNetModel(config).to(torch.bfloat16).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_states_and_vectors_are_those_of_transformers(
    family: str, tiny_encoder_folder: Path, mpnet_folder: Path
) -> None:
    folder = tiny_encoder_folder if family == "bert" else mpnet_folder
    slow, fast = SentenceEncoder(folder), SentenceEncoder.for_inference(folder)
    assert slow.engine is None
    assert fast.engine is not None
    encoded = [slow.tokens(text) for text in TEXTS]
    with torch.inference_mode():
        expected, mask = slow.hidden_states(encoded)
        found, found_mask = fast.hidden_states(encoded)
    assert torch.equal(mask, found_mask)
    assert torch.allclose(expected[mask == 1], found[mask == 1], atol=2e-4)
    assert fast.embed(TEXTS) == pytest.approx(slow.embed(TEXTS), abs=1e-4)
    rounded = SentenceEncoder.for_inference(folder, int8=True)
    likeness = (rounded.embed(TEXTS) * slow.embed(TEXTS)).sum(axis=1)
    assert rounded.int8
    assert likeness.min() > 0.97
    assert likeness.min() < 1 - 1e-6  # it is not float32 after all


def test_a_batch_is_read_in_parts_by_all_cores_at_once(
    tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    engine, sizes = CTranslate2Encoder(tiny_encoder_folder, int8=False), []
    together = threading.Barrier(2, timeout=30)  # broken unless two parts are read at the same time
    own = engine._encoder

    class Passes:
        def forward_batch(self, rows: list[list[int]], **more: Any) -> Any:
            sizes.append(len(rows))
            together.wait()
            return own.forward_batch(rows, **more)

    encoded = [[2, *range(5, 5 + n), 3] for n in (3, 9, 1, 4, 4, 2, 7, 5)]
    whole = np.asarray(own.forward_batch(encoded).last_hidden_state)
    monkeypatch.setattr(engine, "_encoder", Passes())
    found = engine.hidden_states(encoded)
    assert sizes == [2, 2, 2, 2]
    for row, expected, ids in zip(found, whole, encoded, strict=True):
        assert row[: len(ids)] == pytest.approx(expected[: len(ids)], abs=1e-5)


def test_what_lies_behind_a_short_text_is_finite_since_masks_multiply_it(
    tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, np.nan, dtype))
    engine = CTranslate2Encoder(tiny_encoder_folder, int8=False)
    found = engine.hidden_states([[2, *range(5, 5 + n), 3] for n in (3, 9, 1, 4, 4, 2, 7, 5)])
    assert np.isfinite(found).all()


def test_without_the_package_or_for_another_family_pytorch_reads(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_encoder_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "silu"}))
    assert "silu" in unsupported_reason(other)
    assert SentenceEncoder.for_inference(other).engine is None
    (other / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))
    assert "roberta" in unsupported_reason(other)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in unsupported_reason(tiny_encoder_folder)
    encoder = SentenceEncoder.for_inference(tiny_encoder_folder, int8=True)
    assert (encoder.engine, encoder.int8) == (None, False)
    assert np.linalg.norm(encoder.embed(["my card"])[0]) == pytest.approx(1)
