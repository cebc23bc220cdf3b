"""Weights are loaded ready to answer, never run code of their own, and have a fingerprint that follows every bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from smallfirst.errors import ConfigError
from smallfirst.models.local.weights import load_causal, weights_fingerprint


def test_a_model_is_loaded_in_bfloat16_ready_to_answer(tiny_folder: Path) -> None:
    model, tokenizer = load_causal(tiny_folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert tokenizer.bos_token == "<s>"


def test_weights_that_bring_code_are_refused_unread(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "evil")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(ConfigError, match="auto_map"):
        load_causal(folder)


def test_the_fingerprint_changes_with_any_weight_and_with_their_order(tiny_folder: Path) -> None:
    model, _ = load_causal(tiny_folder)
    seen = {weights_fingerprint(model)}
    assert seen == {weights_fingerprint(load_causal(tiny_folder)[0])}
    assert len(next(iter(seen))) == 16
    tensors = list(model.parameters())
    with torch.no_grad():
        for tensor in tensors:
            tensor.view(-1)[3] += 0.5
            seen.add(weights_fingerprint(model))
        rows = model.model.embed_tokens.weight
        rows[[4, 5]] = rows[[5, 4]]
    assert len(seen | {weights_fingerprint(model)}) == len(tensors) + 2
