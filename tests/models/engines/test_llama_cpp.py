"""An export in llama.cpp answers as the model that was trained."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.models.engines.llama_cpp import ExportedModel
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.pricing.prices import PriceBook
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract

RULES = Answer(name="rules", max_answer_tokens=6)
SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "string", "enum": ["small", "large"]}},
    "required": ["size"],
    "additionalProperties": False,
}
TEXTS = ("where is my card", "a refund of 1,250.75, please")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder as training writes it."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "writing"))


def exported(folder: Path, manifest: Manifest) -> Path:
    pytest.importorskip("xllamacpp")
    from smallfirst.models.export.export import chat_template
    from smallfirst.models.export.gguf import write_gguf
    from smallfirst.models.local.weights import load_causal

    model, tokenizer = load_causal(folder)
    tokenizer.chat_template = chat_template(manifest.task, tokenizer)
    path = folder / "export.gguf"
    write_gguf(model.float(), tokenizer, manifest, path, precision="bf16")
    return path


def answers(model: Model, **more: object) -> list[Completion]:
    async def run() -> list[Completion]:
        requests = [Request.ask(text).model_copy(update=more) for text in TEXTS]
        try:
            return [await model.complete(request) for request in requests]
        finally:
            await model.aclose()

    return asyncio.run(run())


def test_answers_and_confidences_are_those_of_the_trained_model(folder: Path) -> None:
    from smallfirst.models.generation.generator import Generator
    from smallfirst.models.generation.model import GenerativeModel

    manifest = Manifest(kind="generative", task=RULES, base="tiny")
    trained = answers(GenerativeModel.fine_tuned(Generator.load(folder), manifest))
    path = exported(folder, manifest)
    found = answers(ExportedModel(path, manifest, PriceBook(), threads=1))
    assert [one.text for one in found] == [one.text for one in trained]
    assert [one.prompt_tokens for one in found] == [one.prompt_tokens for one in trained]
    assert [one.answered_by for one in found] == ["rules", "rules"]
    for one, own in zip(found, trained, strict=True):
        assert one.confidence == pytest.approx(own.confidence, rel=0.2)
        assert one.tokens == ()


def test_schema_is_kept_and_no_confidence_claimed(folder: Path) -> None:
    task = Extract(name="sizes", json_schema=SCHEMA)
    manifest = Manifest(kind="generative", task=task, base="tiny")
    for one in answers(ExportedModel(exported(folder, manifest), manifest, PriceBook(), threads=1), logprobs=0):
        assert one.text in ('{"size": "small"}', '{"size": "large"}')
        assert one.confidence is None
        assert "".join(token.text for token in one.tokens).strip() == one.text


def test_closed_answers_are_not_written(folder: Path) -> None:
    manifest = Manifest(
        kind="label_tokens", task=Classify(name="toy", labels=("a", "b")), label_tokens=(1, 2), base="tiny"
    )
    with pytest.raises(ConfigError, match=r'of kind "label_tokens"; llama\.cpp only generates text'):
        ExportedModel(folder / "export.gguf", manifest, PriceBook())
