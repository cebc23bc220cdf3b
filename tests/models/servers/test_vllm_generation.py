"""Fine-tuned models that generate, on vLLM: the answers, confidences and tokens of the model in this process."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.vllm_server import ScriptedVllm, adapter_folder, event

from smallfirst.base.errors import BadAnswer, ModelError, Unavailable
from smallfirst.models.generation.generator import GenerationRequest, Generator
from smallfirst.models.generation.grammar import Grammar, lark_grammar
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.loading import load_model
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Chunk, Completion, Request
from smallfirst.models.remote.config import VllmServer
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.extract import Extract

Loaded = tuple[Any, Any]
SCHEMA = {
    "type": "object",
    "properties": {"item": {"enum": ["card", "account"]}, "n": {"type": "boolean"}},
    "required": ["item", "n"],
    "additionalProperties": False,
}
TASKS = {"json": Extract(name="orders", json_schema=SCHEMA, max_answer_tokens=40), "text": Answer(name="rules")}
REQUEST = Request.ask("the card", max_tokens=8)


@pytest.fixture
def made(tmp_path: Path, tiny_folder: Path, vllm: ScriptedVllm) -> Callable[[str], GenerativeModel]:
    def make(task: str) -> GenerativeModel:
        manifest = Manifest(kind="generative", task=TASKS[task], base="tiny")
        folder = adapter_folder(tmp_path / task, tiny_folder, manifest)
        model = load_model(folder, name="orders", vllm=VllmServer(url=vllm.url))
        assert isinstance(model, GenerativeModel)
        return model

    return make


def replayed(loaded: Loaded, task: str) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """What vLLM would stream: the tokens that the tiny model generates after the prompt, one an event."""
    model, tokenizer = loaded
    grammar = Grammar.compile(SCHEMA, tokenizer) if task == "json" else None

    def complete(body: dict[str, Any]) -> list[dict[str, Any]]:
        request = GenerationRequest(body["prompt"], body["max_tokens"], grammar=grammar)
        (found,) = Generator(model, tokenizer).generate([request])
        events = [event([token], [log]) for token, log in zip(found.token_ids, found.log_probabilities, strict=False)]
        ended = len(found.log_probabilities) > len(found.token_ids)
        last = ([tokenizer.eos_token_id], [found.log_probabilities[-1]]) if ended else ([], [])
        return [*events, event(*last, found.finish_reason)]

    return complete


def answers(model: GenerativeModel) -> tuple[Completion, list[Chunk]]:
    async def both() -> tuple[Completion, list[Chunk]]:
        other = REQUEST.model_copy(update={"tenant": "bob"})
        found = await model.complete(REQUEST), [chunk async for chunk in model.stream(other)]
        await model.aclose()
        return found

    return asyncio.run(both())


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_the_model_in_this_process(
    made: Callable[[str], GenerativeModel], vllm: ScriptedVllm, tiny_fp32: Loaded, task: str
) -> None:
    vllm.complete = replayed(tiny_fp32, task)
    manifest = Manifest(kind="generative", task=TASKS[task], base="tiny")
    model = made(task)
    found, chunks = answers(model)
    expected, expected_chunks = answers(GenerativeModel.fine_tuned(Generator(*tiny_fp32), manifest, name="orders"))
    ignored = {"latency_ms", "cost_usd", "charges"}
    assert found.model_dump(exclude=ignored) == expected.model_dump(exclude=ignored)
    assert "".join(chunk.text for chunk in chunks) == "".join(chunk.text for chunk in expected_chunks)
    assert found.cost_usd > 0
    body = vllm.bodies[0]
    assert [one["cache_salt"] == body["cache_salt"] for one in vllm.bodies] == [True, False]
    assert body["prompt"] == encode_prompt(tiny_fp32[1], TASKS[task].prompt("the card"), 512)
    assert body.get("structured_outputs") == ({"grammar": lark_grammar(SCHEMA)} if task == "json" else None)


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([event([5], [-0.1])], Unavailable),  # it broke off
        ([{"error": {"message": "EngineCore died"}}], Unavailable),
        ([{"choices": [{"text": "no tokens"}]}], BadAnswer),
        (["x"], BadAnswer),
    ],
)
def test_what_is_no_whole_answer_is_an_error(
    made: Callable[[str], GenerativeModel], vllm: ScriptedVllm, events: Any, error: type[ModelError]
) -> None:
    vllm.complete = lambda _: events
    model = made("text")
    with pytest.raises(error):
        answers(model)
