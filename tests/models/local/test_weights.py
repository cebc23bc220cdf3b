"""Weights are loaded ready to answer, never run code of their own, and have a fingerprint that follows every bit."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from fixtures.deployment import PASSED

from smallfirst.base.errors import ConfigError
from smallfirst.data.dataset import Dataset
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.generation.generator import GenerationRequest, Generator
from smallfirst.models.loading import load_model
from smallfirst.models.local import weights
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.tokenizer import load_tokenizer
from smallfirst.models.local.weights import (
    ADAPTER_WEIGHTS,
    choose_device,
    load_causal,
    load_merged,
    merge_adapters,
    weights_fingerprint,
)
from smallfirst.models.manifest import ADAPTER_CONFIG, read_manifest, write_manifest
from smallfirst.models.protocol import Request
from smallfirst.registry import versions
from smallfirst.registry.runs import open_run
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipe import TaskRecipe
from smallfirst.training.run import Run, train


@pytest.mark.parametrize("code", ["config.json", "tokenizer_config.json", "evil.py"])
@pytest.mark.parametrize("load", [load_causal, load_tokenizer, SentenceEncoder])
def test_weights_that_bring_code_are_refused_by_every_loader(
    tiny_folder: Path, tmp_path: Path, load: Callable[[Path], object], code: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "evil")
    if code == "evil.py":
        (folder / code).write_text("class Model: pass")
    else:
        settings = json.loads((folder / code).read_text()) if (folder / code).exists() else {}
        (folder / code).write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": ["evil.Model", None]}}))
    with pytest.raises(ConfigError, match="code that comes with weights is never run"):
        load(folder)


def test_transformers_loads_nothing_but_through_one_function() -> None:
    package = Path(weights.__file__).parents[2]
    calls = {path.name: path.read_text().count(".from_pretrained(") for path in package.rglob("*.py")}
    assert {name: n for name, n in calls.items() if n} == {"tokenizer.py": 1}


def test_the_fingerprint_changes_with_any_weight_and_with_their_order(tiny_folder: Path) -> None:
    model, tokenizer = load_causal(tiny_folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (model.training, tokenizer.bos_token) == (False, "<s>")
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


def test_the_device_is_the_one_named_else_the_gpu_of_this_process_else_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert choose_device() == torch.device("cuda:2")
    for name in ("cpu", "cuda:3"):
        monkeypatch.setenv("SMALLFIRST_DEVICE", name)
        assert choose_device() == torch.device(name)


@pytest.mark.parametrize(
    ("name", "rule"), [("gpu", "is no device"), ("cuda:0", "no such device"), ("meta", "no such device")]
)
def test_a_device_that_is_not_here_is_refused(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_DEVICE", name)
    with pytest.raises(ConfigError, match=rule):
        choose_device()


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


def test_a_kept_adapter_merges_to_the_weights_that_training_would_have_merged(fit: Any, tmp_path: Path) -> None:
    merged, alone = fit(tmp_path / "merged"), fit(tmp_path / "kept", adapters="kept")
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


def test_the_folder_names_its_base_and_its_labels_are_read_by_the_decoder_of_merged_models(
    kept: Path, tiny_folder: Path
) -> None:
    manifest = read_manifest(kept)
    assert (manifest.base, len(manifest.base_sha256)) == (str(tiny_folder), 64)
    assert "/" not in peft.PeftConfig.from_pretrained(kept).base_model_name_or_path
    scorer = LabelScorer.load(kept, manifest)
    assert scorer.packed is not None
    found = asyncio.run(load_model(kept).complete(Request.ask("where is my card")))
    logs = scorer.score(["where is my card"])[0].log_probabilities
    assert found.text == scorer.manifest.task.closed[logs.index(max(logs))]


def test_a_registered_version_is_the_adapter_alone(kept: Path) -> None:
    version = versions.register(kept, PASSED, name="main.default.toy", run_id=None, tags={})
    found = versions.resolve(f"models:/main.default.toy/{version.version}").folder
    assert sum(path.stat().st_size for path in found.glob("*.safetensors")) < 40_000
    asked = [asyncio.run(load_model(folder).complete(Request.ask("where is my card"))) for folder in (kept, found)]
    assert asked[0].confidence == asked[1].confidence


def test_merging_changes_nothing_of_the_model_in_training(kept: Path, tiny_folder: Path) -> None:
    from smallfirst.training.causal_lm import add_adapters

    model = add_adapters(load_causal(tiny_folder)[0], TrainConfig(method="lora"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    whole = merge_adapters(model)
    assert whole.get_input_embeddings().weight is model.get_input_embeddings().weight  # shared, not copied
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert any(".lora_A." in name for name in before)
    assert not any("lora" in name for name in whole.state_dict())


def test_adapters_that_do_not_fit_are_refused(kept: Path, tmp_path: Path) -> None:
    weights = safetensors.torch.load_file(kept / ADAPTER_WEIGHTS)

    def refused(match: str, part: dict[str, torch.Tensor], **settings: Any) -> None:
        broken = shutil.copytree(kept, tmp_path / f"broken {match} {len(part)} {settings}")
        config = json.loads((broken / ADAPTER_CONFIG).read_text())
        (broken / ADAPTER_CONFIG).write_text(json.dumps(config | settings))
        (broken / ADAPTER_WEIGHTS).unlink()
        if part:
            safetensors.torch.save_file(part, broken / ADAPTER_WEIGHTS)
        with pytest.raises(ConfigError, match=match):
            load_model(broken)

    part, first = next(iter(weights.items()))
    refused("must be LORA", weights, peft_type="IA3")
    refused("without use_dora", weights, use_dora=True)
    for name in ("use_rslora", "rank_pattern", "alpha_pattern"):
        refused(f"{name} changes the scale", weights, **{name: {"q_proj": 2}})
    refused("not readable as safetensors", {})
    refused("low-rank parts", weights | {"base_model.model.lm_head.weight": first.clone()})
    refused("does not fit the base", weights | {part: torch.zeros(3, 3)})
    refused("does not fit", {key: value for key, value in weights.items() if key != part})


def test_an_adapter_is_served_on_the_base_it_was_trained_on_alone(
    kept: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    pinned = shutil.copytree(kept, tmp_path / "pinned")
    write_manifest(pinned, read_manifest(kept).model_copy(update={"base": str(base)}))
    (base / "README.md").write_text("not read by loading")
    load_model(pinned)
    for changed in ("model.safetensors", "tokenizer_config.json"):
        before = (base / changed).read_bytes()
        if changed == "model.safetensors":  # another model of the same shape
            weights = {name: weight * 1.01 for name, weight in safetensors.torch.load_file(base / changed).items()}
            safetensors.torch.save_file(weights, base / changed, {"format": "pt"})
        else:
            (base / changed).write_bytes(before + b"\n")
        with pytest.raises(ConfigError, match=r"(?s)pinned: this adapter was trained on .*next: copy the folder of"):
            load_model(pinned)
        (base / changed).write_bytes(before)
    load_model(pinned)


def test_a_model_that_generates_is_its_merged_weights(kept: Path, tmp_path: Path) -> None:
    rules = Answer(name="rules", max_answer_tokens=8)
    folder = shutil.copytree(kept, tmp_path / "rules")
    manifest = read_manifest(kept).model_copy(update={"kind": "generative", "task": rules, "label_tokens": ()})
    write_manifest(folder, manifest)
    wanted = Generator(*load_merged(kept)).generate([GenerationRequest([5, 6, 7], 8)])[0].token_ids
    assert Generator.load(folder).generate([GenerationRequest([5, 6, 7], 8)])[0].token_ids == wanted
    assert asyncio.run(load_model(folder).complete(Request.ask("where is my card"))).answered_by == "rules"
