"""An adapter that is kept is what merging would have made of it, in a folder of a few kB that peft itself reads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from fixtures.deployment import PASSED

from smallfirst.data.dataset import Dataset
from smallfirst.models.export.export import export
from smallfirst.models.generation.adapters import ADAPTER_WEIGHTS, load_merged, merge_adapters
from smallfirst.models.loading import load_model
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Request
from smallfirst.registry import versions
from smallfirst.registry.runs import open_run
from smallfirst.tasks.classify import Classify
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import Run, train

pytestmark = pytest.mark.usefixtures("module_home")


@pytest.fixture(scope="module")
def fit(toy_task: Classify, toy_rows: Dataset, toy_selection: Dataset, tiny_folder: Path) -> Any:
    def run(folder: Path, **settings: Any) -> Run:
        config = TrainConfig(duration="2ep", learning_rate=3e-3, batch_tokens=128, **{"method": "lora", **settings})
        with open_run("toy", folder.name) as tracked:
            recipe = TaskRecipe(toy_task, toy_rows, toy_selection)
            return train(recipe, config, base=(str(tiny_folder), tiny_folder), tracked=tracked, folder=folder)

    return run


@pytest.fixture(scope="module")
def kept(fit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("kept"), adapters="kept").folder


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_kept_adapter_merges_to_the_weights_that_training_would_have_merged(
    method: str, fit: Any, tmp_path: Path
) -> None:
    merged, alone = fit(tmp_path / "merged", method=method), fit(tmp_path / "kept", method=method, adapters="kept")
    assert alone.validation_curve == merged.validation_curve
    assert not (alone.folder / "model.safetensors").exists()
    whole, theirs = load_merged(alone.folder)[0], load_causal(merged.folder)[0]
    for (name, mine), (_, other) in zip(whole.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, msg=name)
    assert whole.state_dict().keys() == theirs.state_dict().keys()


def test_peft_reads_the_folder_and_gives_the_same_logits(kept: Path, tiny_folder: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        before = base(input_ids=ids).logits
        theirs = peft.PeftModel.from_pretrained(base, kept)(input_ids=ids).logits
        own = load_merged(kept)[0].float()(input_ids=ids).logits  # of weights that were rounded to bf16
    assert (own - theirs).abs().max() < 0.1 * (before - theirs).abs().max()


def test_the_folder_says_which_base_it_needs_and_names_no_place(kept: Path, tiny_folder: Path) -> None:
    manifest = read_manifest(kept)
    assert manifest.base == str(tiny_folder)
    assert len(manifest.base_sha256) == 64
    assert len(manifest.weights_fingerprint) == 16
    assert "/" not in peft.PeftConfig.from_pretrained(kept).base_model_name_or_path


def test_its_labels_are_read_by_the_decoder_of_merged_models(kept: Path) -> None:
    scorer = LabelScorer.load(kept, read_manifest(kept))
    assert scorer.engine == "packed"
    found = asyncio.run(load_model(kept).complete(Request.ask("where is my card")))
    logs = scorer.score(["where is my card"])[0].log_probabilities
    assert found.text == scorer.manifest.task.closed[logs.index(max(logs))]


def test_a_registered_version_is_the_adapter_alone(kept: Path) -> None:
    version = versions.register(kept, PASSED, name="main.default.toy", run_id=None, tags={})
    found = versions.resolve(f"models:/main.default.toy/{version.version}").folder
    assert sum(path.stat().st_size for path in found.glob("*.safetensors")) < 40_000
    asked = [asyncio.run(load_model(folder).complete(Request.ask("where is my card"))) for folder in (kept, found)]
    assert asked[0].confidence == asked[1].confidence


def test_an_export_is_a_whole_model(kept: Path, tmp_path: Path) -> None:
    report = export(kept, tmp_path / "out", format="safetensors", precision="bf16", texts=["where is my card"])
    assert report.same_answers == 1
    assert not (tmp_path / "out" / ADAPTER_WEIGHTS).exists()


def test_merging_changes_nothing_of_the_model_in_training(kept: Path, tiny_folder: Path) -> None:
    from smallfirst.training.causal_lm import add_adapters

    model = add_adapters(load_causal(tiny_folder)[0], TrainConfig(method="lora"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    whole = merge_adapters(model)
    assert whole.get_input_embeddings().weight is model.get_input_embeddings().weight  # shared, not copied
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert any(".lora_A." in name for name in before)
    assert not any("lora" in name for name in whole.state_dict())
