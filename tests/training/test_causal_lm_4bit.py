"""Adapters over a base in 4 bits learn what adapters over the same numbers in 16 bits learn."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from smallfirst.data.dataset import Dataset
from smallfirst.errors import MissingExtra
from smallfirst.models.local.weights import load_causal
from smallfirst.registry.runs import open_run
from smallfirst.tasks.classify import Classify
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.causal_lm import CausalBackend, target_loss
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import train

ROWS = [TokenizedRow((0, 5, 9, 300, 301), 3), TokenizedRow((0, 5, 7, 8, 300, 301, 302), 4)]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra gpu)"
)


def adapted(folder: Path, **settings: Any) -> Any:
    model, _ = CausalBackend().load(folder, TrainConfig(**settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=0.2)
    return model


@needs_bitsandbytes
def test_a_base_in_4_bits_gives_the_loss_and_gradient_of_its_numbers_in_16(tiny_folder: Path, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    packed = adapted(tiny_folder, method="qlora")
    bits = {name: part.weight for name, part in packed.named_modules() if name.endswith(".base_layer")}
    assert {type(weight).__name__ for weight in bits.values()} == {"Params4bit"}
    assert len(bits) == 2 * 7  # every matrix of both layers
    whole, tokenizer = load_causal(tiny_folder)
    changed = 0
    for name, weight in bits.items():
        part = whole.get_submodule(name.removesuffix(".base_layer"))
        numbers = dequantize_4bit(weight.data, weight.quant_state)
        changed += not torch.equal(part.weight, numbers)
        part.weight.data = numbers
    assert changed == len(bits)
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = adapted(tmp_path, method="lora")
    found = []
    for model in (packed, plain):
        loss = target_loss(model, ROWS)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(found[0]) == len(found[1]) == 1 + 2 * len(bits)
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0.02)  # products in bf16


@needs_bitsandbytes
@pytest.mark.parametrize("frozen", [0, 1])
def test_merging_writes_the_16_bit_model_that_was_trained(frozen: int, tiny_folder: Path, tmp_path: Path) -> None:
    model = adapted(tiny_folder, method="qlora", frozen_layers=frozen)
    CausalBackend().save(model, load_causal(tiny_folder)[1], tmp_path)
    settings = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tiny_folder)]
    assert settings[0] == settings[1]
    whole, _ = load_causal(tmp_path)
    assert {p.dtype for p in whole.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        mine, theirs = (m(input_ids=torch.arange(5, 25)[None]).logits.float() for m in (whole, model))
    assert (mine - theirs).abs().max() < 0.05 * theirs.abs().max()


@needs_bitsandbytes
def test_a_run_learns_and_its_version_is_a_whole_model_in_16_bits(
    toy_task: Classify, toy_rows: Dataset, toy_selection: Dataset, tiny_folder: Path, tmp_path: Path
) -> None:
    config = TrainConfig(method="qlora", duration="4ep", learning_rate=5e-3, batch_tokens=128)
    with open_run("toy", "qlora") as tracked:
        recipe = TaskRecipe(toy_task, toy_rows, toy_selection)
        run = train(recipe, config, base=("tiny", tiny_folder), tracked=tracked, folder=tmp_path)
    losses = [loss for _, loss in run.loss_curve]
    assert losses[-1] < 0.85 * losses[0]
    before, after = (dict(load_causal(folder)[0].named_parameters()) for folder in (tiny_folder, run.folder))
    assert before.keys() == after.keys()


def test_without_bitsandbytes_the_extra_is_named(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="gpu"):
        load_causal(tiny_folder, nf4=True)
