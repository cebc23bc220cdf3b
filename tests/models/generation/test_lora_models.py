"""Adapters over one base answer as their merged weights do, with the base in memory once and nothing shared."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from smallfirst.errors import ConfigError, ModelError
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.lora_models import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraBase, load_adapters
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.label_model import LabelModel
from smallfirst.models.loading import load_model
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.weights import load_causal
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.models.protocol import Completion, Model, Request, embedding_model
from smallfirst.tasks.answer import Answer

ANSWER = Answer(name="rules", max_answer_tokens=8)
TEXTS = ("the card", "where is my refund please", "pin")


def adapted(base: Path, folder: Path, seed: int, manifest: Manifest, *, dora: bool = False) -> Any:
    """A folder as peft saves it, with weights that change what is said; back comes the merged model."""
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
    return Manifest(**({"kind": "writes", "task": ANSWER, "base": str(folder)} | more))


@pytest.fixture
def base(tiny_folder: Path) -> LoraBase:
    """The tiny model in fp32, where merged and unmerged weights differ by rounding only."""
    model, tokenizer = load_causal(tiny_folder)
    return LoraBase(model.float(), tokenizer, name="tiny")


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_side_by_side_say_what_merged_weights_say(
    base: LoraBase, tiny_folder: Path, tmp_path: Path, dora: bool
) -> None:
    whole = [adapted(tiny_folder, tmp_path / str(i), i, manifest(tiny_folder), dora=dora) for i in range(2)]
    n_base = sum(weight.numel() for weight in base.model.parameters())
    found = ask(*(base.serve(tmp_path / str(i), name=f"model {i}") for i in range(2)))
    n_adapters = sum(weight.numel() for name, weight in base.model.named_parameters() if ".lora_" in name)
    assert sum(weight.numel() for weight in base.model.parameters()) == n_base + n_adapters
    wanted = ask(
        *(GenerativeModel.for_task(Generator(model, base.tokenizer), manifest(tiny_folder)) for model in whole)
    )
    assert [c.text for c in found[0]] != [c.text for c in found[1]]
    for mine, theirs in zip(found, wanted, strict=True):
        assert [c.text for c in mine] == [c.text for c in theirs]
        assert [c.confidence for c in mine] == pytest.approx([c.confidence for c in theirs], rel=1e-3)
    assert [c.answered_by for c in found[1]] == ["model 1"] * 3


def test_the_base_itself_says_what_it_said_before(base: LoraBase, tiny_folder: Path, tmp_path: Path) -> None:
    before = Generator(base.model, base.tokenizer).generate([GenerationRequest([5, 6, 7], 8)])[0]
    adapted(tiny_folder, tmp_path / "a", 1, manifest(tiny_folder))
    adapter = base.add(tmp_path / "a")
    writer = Generator(base.model, base.tokenizer, using=base.using)
    assert writer.generate([GenerationRequest([5, 6, 7], 8, adapter=adapter)])[0].token_ids != before.token_ids
    assert writer.generate([GenerationRequest([5, 6, 7], 8)])[0].token_ids == before.token_ids


def test_keys_and_values_are_never_another_adapters(base: LoraBase, tiny_folder: Path, tmp_path: Path) -> None:
    names = []
    for i in range(2):
        adapted(tiny_folder, tmp_path / str(i), i, manifest(tiny_folder))
        names.append(base.add(tmp_path / str(i)))
    beginning = tuple(range(20, 60))
    plain = Generator(base.model, base.tokenizer, using=base.using)
    wanted = [plain.generate([GenerationRequest([*beginning, 7], 8, adapter=name)])[0].token_ids for name in names]
    assert wanted[0] != wanted[1]
    live = base._shared()

    async def play() -> list[tuple[int, ...]]:
        asks = [GenerationRequest([*beginning, 7], 8, prefix=beginning, adapter=name) for name in (*names, *names)]
        found = [written.token_ids for written in await asyncio.gather(*map(live.generate, asks))]
        await live.aclose()
        return found

    assert asyncio.run(play()) == [*wanted, *wanted]
    assert set(live.generator._prefixes) == {(name, beginning) for name in names}
    one, other = live.generator._prefixes.values()
    assert not torch.equal(one._cache.layers[-1].keys, other._cache.layers[-1].keys)


def test_a_label_model_may_be_an_adapter_too(base: LoraBase, tiny_folder: Path, tmp_path: Path, toy_task: Any) -> None:
    codes = manifest(tiny_folder, kind="codes", task=toy_task, codes=(10, 11, 12, 13))
    whole = adapted(tiny_folder, tmp_path / "labels", 3, codes)
    adapted(tiny_folder, tmp_path / "text", 4, manifest(tiny_folder))
    found, _ = ask(base.serve(tmp_path / "labels"), base.serve(tmp_path / "text"))
    (wanted,) = ask(LabelModel(LabelScorer(whole, base.tokenizer, codes), codes))
    assert [c.text for c in found] == [c.text for c in wanted]
    assert [c.confidence for c in found] == pytest.approx([c.confidence for c in wanted], abs=1e-4)


def test_vectors_are_an_adapters_own(base: LoraBase, tiny_folder: Path, tmp_path: Path, toy_task: Any) -> None:
    codes = manifest(tiny_folder, kind="codes", task=toy_task, codes=(10, 11, 12, 13))
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


def test_folders_of_one_base_share_it(tiny_folder: Path, tmp_path: Path) -> None:
    for i in range(2):
        adapted(tiny_folder, tmp_path / str(i), i, manifest(tiny_folder))
    models = load_adapters({"a": tmp_path / "0", "b": tmp_path / "1"})
    schedulers = [model.scheduler for model in models.values() if isinstance(model, GenerativeModel)]
    assert schedulers[0] is schedulers[1]
    found = ask(*models.values())
    alone = ask(load_model(tmp_path / "1", name="alone"))
    assert [c.text for c in found[1]] == [c.text for c in alone[0]]
    assert schedulers[0].closed


def test_the_thread_lives_until_the_last_model_is_closed(base: LoraBase, tiny_folder: Path, tmp_path: Path) -> None:
    adapted(tiny_folder, tmp_path / "a", 1, manifest(tiny_folder))
    one, other = base.serve(tmp_path / "a"), base.serve(tmp_path / "a")

    async def play() -> None:
        await one.aclose()
        await one.aclose()
        assert (await other.complete(Request.ask("pin"))).text
        await other.aclose()
        again = base.serve(tmp_path / "a")
        assert (await again.complete(Request.ask("pin"))).text
        await again.aclose()

    asyncio.run(play())


def test_what_is_no_fitting_adapter_is_refused(base: LoraBase, tiny_folder: Path, tmp_path: Path) -> None:
    def said() -> tuple[int, ...]:
        return (
            Generator(base.model, base.tokenizer, using=base.using)
            .generate([GenerationRequest([5, 6, 7], 8)])[0]
            .token_ids
        )

    folder, before = tmp_path / "a", said()
    whole = adapted(tiny_folder, folder, 1, manifest(tiny_folder))
    weights = safetensors.torch.load_file(folder / ADAPTER_WEIGHTS)

    def refused(match: str, part: dict[str, torch.Tensor], **settings: Any) -> None:
        said = json.loads((folder / ADAPTER_CONFIG).read_text())
        broken = tmp_path / f"broken {match}"
        broken.mkdir()
        write_manifest(broken, manifest(tiny_folder))
        (broken / ADAPTER_CONFIG).write_text(json.dumps(said | settings))
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
    assert said() == before
    (found,) = ask(base.serve(folder))
    (wanted,) = ask(GenerativeModel.for_task(Generator(whole, base.tokenizer), manifest(tiny_folder)))
    assert [c.text for c in found] == [c.text for c in wanted]
