"""Adapters over one base answer like their merged weights; the base is in memory once, and nothing else is shared."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from smallfirst.errors import ConfigError, ModelError
from smallfirst.models.generation.adapters import ADAPTER_WEIGHTS
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.lora_models import LoraBase, load_adapters
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.label_model import LabelModel
from smallfirst.models.loading import load_model
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import ADAPTER_CONFIG, Manifest, base_sha256, write_manifest
from smallfirst.models.protocol import Completion, Model, Request, embedding_model
from smallfirst.tasks.answer import Answer

ANSWER = Answer(name="rules", max_answer_tokens=8)
TEXTS = ("the card", "where is my refund please", "pin")


def adapted(base: Path, folder: Path, seed: int, manifest: Manifest, *, dora: bool = False) -> Any:
    """Write a folder as peft saves it, with weights that change the answers; return the merged model."""
    import peft

    model = load_causal(base)[0].float()
    names = ["q_proj", "v_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=8, use_dora=dora, target_modules=names, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                weight.normal_(std=0.3)
    wrapped.save_pretrained(folder)
    write_manifest(folder, manifest)
    return copy.deepcopy(wrapped).merge_and_unload()


def ask(*models: Model) -> list[list[Completion]]:
    """Each model's answers to TEXTS, all asked at the same moment; the models are closed."""

    async def together() -> list[list[Completion]]:
        jobs = [asyncio.gather(*(model.complete(Request.ask(text)) for text in TEXTS)) for model in models]
        found = await asyncio.gather(*jobs)
        for model in models:
            await model.aclose()
        return found

    return asyncio.run(together())


def manifest(folder: Path, **more: Any) -> Manifest:
    return Manifest(**({"kind": "generative", "task": ANSWER, "base": str(folder)} | more))


@pytest.fixture
def base(tiny_folder: Path) -> LoraBase:
    """The tiny model in fp32, where merged and unmerged weights differ by rounding only."""
    model, tokenizer = load_causal(tiny_folder)
    return LoraBase(model.float(), tokenizer, name="tiny")


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [tmp_path / str(i) for i in range(2)]


@pytest.fixture
def merged(tiny_folder: Path, folders: list[Path]) -> list[Any]:
    """The merged models of two adapters, whose folders are written."""
    return [adapted(tiny_folder, folder, i, manifest(tiny_folder)) for i, folder in enumerate(folders)]


def texts_of(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


def tokens_of(base: LoraBase, adapter: str = "") -> tuple[int, ...]:
    generator = Generator(base.model, base.tokenizer, using=base.using)
    return generator.generate([GenerationRequest([5, 6, 7], 8, adapter=adapter)])[0].token_ids


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_beside_each_other_answer_like_merged_weights(
    base: LoraBase, tiny_folder: Path, folders: list[Path], dora: bool
) -> None:
    whole = [adapted(tiny_folder, folder, i, manifest(tiny_folder), dora=dora) for i, folder in enumerate(folders)]
    n_base = sum(weight.numel() for weight in base.model.parameters())
    found = ask(*(base.serve(folder, name=folder.name) for folder in folders))
    n_adapters = sum(weight.numel() for name, weight in base.model.named_parameters() if ".lora_" in name)
    assert sum(weight.numel() for weight in base.model.parameters()) == n_base + n_adapters
    wanted = ask(
        *(GenerativeModel.fine_tuned(Generator(model, base.tokenizer), manifest(tiny_folder)) for model in whole)
    )
    assert texts_of(found[0]) != texts_of(found[1])
    for mine, theirs in zip(found, wanted, strict=True):
        assert texts_of(mine) == texts_of(theirs)
        assert [c.confidence for c in mine] == pytest.approx([c.confidence for c in theirs], rel=1e-3)
    assert [c.answered_by for c in found[1]] == ["1"] * 3


@pytest.mark.usefixtures("merged")
def test_the_base_itself_answers_as_before(base: LoraBase, folders: list[Path]) -> None:
    before = tokens_of(base)
    adapter = base.add(folders[0])
    assert tokens_of(base, adapter) != before
    assert tokens_of(base) == before


@pytest.mark.usefixtures("merged")
def test_keys_and_values_belong_to_one_adapter(base: LoraBase, folders: list[Path]) -> None:
    names = [base.add(folder) for folder in folders]
    prefix = tuple(range(20, 60))
    plain = Generator(base.model, base.tokenizer, using=base.using)
    wanted = [plain.generate([GenerationRequest([*prefix, 7], 8, adapter=name)])[0].token_ids for name in names]
    assert wanted[0] != wanted[1]
    scheduler = base._shared()

    async def play() -> list[tuple[int, ...]]:
        requests = [GenerationRequest([*prefix, 7], 8, prefix=prefix, adapter=name) for name in (*names, *names)]
        found = [result.token_ids for result in await asyncio.gather(*map(scheduler.generate, requests))]
        await scheduler.aclose()
        return found

    assert asyncio.run(play()) == [*wanted, *wanted]
    assert set(scheduler.generator._prefixes) == {(name, prefix) for name in names}
    one, other = scheduler.generator._prefixes.values()
    assert not torch.equal(one._cache.layers[-1].keys, other._cache.layers[-1].keys)


def test_a_label_model_may_be_an_adapter_too(
    base: LoraBase, tiny_folder: Path, folders: list[Path], toy_task: Any
) -> None:
    codes = manifest(tiny_folder, kind="label_tokens", task=toy_task, label_tokens=(10, 11, 12, 13))
    whole = adapted(tiny_folder, folders[0], 3, codes)
    adapted(tiny_folder, folders[1], 4, manifest(tiny_folder))
    found, _ = ask(*map(base.serve, folders))
    (wanted,) = ask(LabelModel(LabelScorer(whole, base.tokenizer, codes), codes))
    assert texts_of(found) == texts_of(wanted)
    assert [c.confidence for c in found] == pytest.approx([c.confidence for c in wanted], abs=1e-4)


def test_embeddings_are_an_adapters_own(base: LoraBase, tiny_folder: Path, tmp_path: Path, toy_task: Any) -> None:
    codes = manifest(tiny_folder, kind="label_tokens", task=toy_task, label_tokens=(10, 11, 12, 13))
    for i, own in enumerate((codes, codes, manifest(tiny_folder), manifest(tiny_folder))):
        adapted(tiny_folder, tmp_path / str(i), i, own)
    models = [base.serve(tmp_path / str(i)) for i in range(4)]

    async def play() -> list[list[float]]:
        found = []
        for model in models:
            embedding = embedding_model(model)
            assert embedding is not None
            found.append((await embedding.embed(["the card"])).vectors[0])
            await model.aclose()
        return found

    one, *others = asyncio.run(play())
    assert all(one != pytest.approx(other, abs=1e-3) for other in others)


@pytest.mark.usefixtures("merged")
def test_folders_of_one_base_share_it(folders: list[Path]) -> None:
    models = load_adapters({"a": folders[0], "b": folders[1]})
    one, other = (model.scheduler for model in models.values() if isinstance(model, GenerativeModel))
    assert one is other
    found = ask(*models.values())
    assert texts_of(found[1]) == texts_of(ask(load_model(folders[1], name="alone"))[0])
    assert one.closed


@pytest.mark.usefixtures("merged")
def test_the_thread_lives_until_the_last_model_is_closed(base: LoraBase, folders: list[Path]) -> None:
    one, other = base.serve(folders[0]), base.serve(folders[0])

    async def play() -> None:
        await one.aclose()
        await one.aclose()
        assert (await other.complete(Request.ask("pin"))).text
        await other.aclose()
        again = base.serve(folders[0])
        assert (await again.complete(Request.ask("pin"))).text
        await again.aclose()

    asyncio.run(play())


def test_adapters_that_do_not_fit_are_refused_and_change_nothing(
    base: LoraBase, tiny_folder: Path, folders: list[Path], merged: list[Any], tmp_path: Path
) -> None:
    folder, before = folders[0], tokens_of(base)
    weights = safetensors.torch.load_file(folder / ADAPTER_WEIGHTS)

    def refused(match: str, part: dict[str, torch.Tensor], **settings: Any) -> None:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        broken = tmp_path / f"broken {match}"
        broken.mkdir()
        write_manifest(broken, manifest(tiny_folder))
        (broken / ADAPTER_CONFIG).write_text(json.dumps(config | settings))
        if part:
            safetensors.torch.save_file(part, broken / ADAPTER_WEIGHTS)
        with pytest.raises(ConfigError, match=match):
            base.serve(broken)

    name, first = next(iter(weights.items()))
    refused("must be LORA", weights, peft_type="IA3")
    refused("not readable as safetensors", {})
    refused("low-rank parts", weights | {"base_model.model.lm_head.weight": first.clone()})
    refused("does not fit the base tiny", weights | {name: torch.zeros(3, 3)})
    refused("does not fit", {key: value for key, value in weights.items() if key != name})
    with pytest.raises(ModelError, match="no adapter 'x'"), base.using("x"):
        pass
    assert tokens_of(base) == before
    (found,) = ask(base.serve(folder))
    (wanted,) = ask(GenerativeModel.fine_tuned(Generator(merged[0], base.tokenizer), manifest(tiny_folder)))
    assert texts_of(found) == texts_of(wanted)


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer_config.json"])
def test_an_adapter_is_served_on_the_base_it_was_trained_on_alone(
    tiny_folder: Path, tmp_path: Path, changed: str
) -> None:
    place, pinned, older = (tmp_path / name for name in ("base", "pinned", "older"))
    shutil.copytree(tiny_folder, place)
    adapted(place, pinned, 0, manifest(place, base_sha256=base_sha256(place)))
    adapted(place, older, 0, manifest(place))
    (place / "README.md").write_text("not read by loading")
    wanted = texts_of(ask(*load_adapters({"a": pinned}).values())[0])
    if changed == "model.safetensors":  # another model of the same shape
        weights = safetensors.torch.load_file(place / changed)
        weights = {name: weight * 1.01 for name, weight in weights.items()}
        safetensors.torch.save_file(weights, place / changed, {"format": "pt"})
    else:
        (place / changed).write_text((place / changed).read_text() + "\n")
    with pytest.raises(ConfigError, match=r"(?s)pinned: this adapter was trained on .*next: copy the folder of"):
        load_adapters({"a": pinned})
    assert load_adapters({"a": older})  # of before the pin: loads as ever
    shutil.rmtree(place)
    shutil.copytree(tiny_folder, place)
    assert texts_of(ask(*load_adapters({"a": pinned}).values())[0]) == wanted
