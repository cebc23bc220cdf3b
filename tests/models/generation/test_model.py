"""Generative models: a fine-tuned one under its task's schema, a chat model through its template."""

import asyncio
import json
import math
from typing import Any

import pytest
import torch

from smallfirst.base.errors import ModelError, RequestRefused
from smallfirst.data.dataset import Message
from smallfirst.models.confidence import Calibration, IsotonicCurve
from smallfirst.models.generation.generator import GenerationRequest, GenerationResult, Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.model import GenerativeModel, field_confidence
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import MachinePrice
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request, ResponseFormat
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.extract import Extract

SCHEMA = {
    "type": "object",
    "properties": {
        "item": {"type": "string", "maxLength": 9},
        "n": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}]},
    },
    "required": ["item", "n"],
    "additionalProperties": False,
}
EXTRACT = Extract(name="orders", json_schema=SCHEMA, max_answer_tokens=60)
ANSWER = Answer(name="rules", max_answer_tokens=6)
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
REQUEST = Request.ask("the card")
Loaded = tuple[Any, Any]


def for_task(loaded: Loaded, task: Any = ANSWER, *, price: MachinePrice | None = None, **more: Any) -> GenerativeModel:
    manifest = Manifest(kind="generative", task=task, base="tiny", **more)
    return GenerativeModel.fine_tuned(Generator(*loaded), manifest, price=price)


def for_chat(
    loaded: Loaded, template: str | None = None, manifest: Manifest | None = None, **settings: Any
) -> GenerativeModel:
    """A chat model whose answers end only where their tokens run out."""
    loaded[1].chat_template = template
    generator = Generator(*loaded, end=-1)
    if manifest is not None:
        return GenerativeModel.fine_tuned(generator, manifest, name="tiny")
    return GenerativeModel.published(generator, name="tiny", **settings)


def ask(model: Model, *requests: Request) -> list[Completion]:
    """Answers to requests made at the same moment; the model is closed."""

    async def together() -> list[Completion]:
        found = await asyncio.gather(*(model.complete(request) for request in requests))
        await model.aclose()
        return found

    return asyncio.run(together())


def stream(model: Model, request: Request) -> list[Chunk]:
    async def play() -> list[Chunk]:
        chunks = [chunk async for chunk in model.stream(request)]
        await model.aclose()
        return chunks

    return asyncio.run(play())


def test_a_fine_tuned_model_is_prompted_as_in_training(tiny_fp32: Loaded) -> None:
    price = MachinePrice(usd_per_hour=3600, utilisation=0.5)
    found = ask(for_task(tiny_fp32, price=price), REQUEST)[0]
    ids = encode_prompt(tiny_fp32[1], ANSWER.prompt("the card"), 512)
    wanted = Generator(*tiny_fp32).generate([GenerationRequest(ids, 6)])[0]
    assert found.text == wanted.text.strip()
    assert found.completion_tokens == len(wanted.token_ids) == 6
    assert found.prompt_tokens == len(ids)
    assert found.finish_reason == "length"
    assert found.confidence == pytest.approx(math.exp(sum(wanted.log_probabilities)), rel=1e-3)
    assert 0 < found.cost_usd <= 2 * found.latency_ms / 1000


def test_json_follows_the_schema_and_every_field_has_its_confidence(tiny_fp32: Loaded) -> None:
    for found in ask(for_task(tiny_fp32, EXTRACT), Request.ask("two cards"), Request.ask("a refund, it is late")):
        assert set(json.loads(found.text)) == set(found.field_confidence) == {"item", "n"}
        assert all(0 <= p <= 1 for p in found.field_confidence.values())
        assert found.confidence is not None
        assert found.confidence <= min(found.field_confidence.values()) + 1e-9
    cut = ask(for_task(tiny_fp32, EXTRACT), Request.ask("two cards", max_tokens=3))[0]
    assert (cut.finish_reason, cut.confidence, cut.field_confidence) == ("length", 0.0, {})


def test_a_calibration_replaces_the_raw_probability(tiny_fp32: Loaded) -> None:
    curve = IsotonicCurve(x=(-1.0, 1.0), y=(0.7, 0.7))
    flat = Calibration(weights=(0.0,) * 4, centres=(0.0,) * 4, scales=(1.0,) * 4, steps=curve, n_rows=50)
    assert ask(for_task(tiny_fp32, calibration=flat), REQUEST)[0].confidence == pytest.approx(0.7, abs=0.002)


def test_a_chat_model_reads_the_whole_conversation_through_its_template(tiny_fp32: Loaded) -> None:
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="the card"))
    found = ask(for_chat(tiny_fp32, TEMPLATE, schema=SCHEMA), Request(messages=messages, max_tokens=60))[0]
    assert found.prompt_tokens == len(tiny_fp32[1].encode("system:Be brief.\nuser:the card\n"))
    assert set(json.loads(found.text)) == {"item", "n"}
    assert found.answered_by == "tiny"


def test_a_fields_confidence_is_that_of_its_values_tokens_only(tiny_fp32: Loaded) -> None:
    tokenizer = tiny_fp32[1]
    grammar = Grammar.compile(SCHEMA, tokenizer)
    text = '{"item": "größe", "n": 41}'
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    pieces = grammar.pieces(ids)
    halves = tuple(math.log(0.5) for _ in ids)
    found = field_confidence(GenerationResult(text, ids, halves, 1, "stop", 0.0), grammar)
    starts = [len(b"".join(pieces[:i])) for i in range(len(ids) + 1)]
    for path, value in (("item", '"größe"'), ("n", "41")):
        left = text.encode().index(value.encode())
        right = left + len(value.encode())
        n_overlapping = sum(starts[i] < right and starts[i + 1] > left for i in range(len(ids)))
        assert found[path] == pytest.approx(0.5**n_overlapping)


@pytest.mark.parametrize("task", [ANSWER.model_copy(update={"max_answer_tokens": 30}), EXTRACT])
def test_the_chunks_of_a_stream_add_up_to_the_whole_answer(lively: Loaded, task: Any) -> None:
    request = Request.ask("where is my refund")
    (whole,) = ask(for_task(lively, task), request)
    *chunks, last = stream(for_task(lively, task), request)
    assert len(chunks) > 3
    assert "".join(chunk.text for chunk in chunks) == whole.text
    measured = {"latency_ms", "cost_usd", "charges"}
    assert last.completion.model_dump(exclude=measured) == whole.model_dump(exclude=measured)


def test_a_request_may_give_free_text_a_format_but_not_change_the_tasks(lively: Loaded) -> None:
    wanted = REQUEST.model_copy(update={"response_format": ResponseFormat(kind="json_schema", json_schema=SCHEMA)})
    found = ask(for_task(lively, ANSWER.model_copy(update={"max_answer_tokens": 60})), wanted, REQUEST)
    assert set(json.loads(found[0].text)) == set(found[0].field_confidence) == {"item", "n"}
    assert not found[1].text.startswith("{")
    other = ResponseFormat(
        kind="json_schema", json_schema={"type": "object", "properties": {"item": {"type": "string"}}}
    )
    with pytest.raises(RequestRefused, match="follow the schema of its task"):
        ask(for_task(lively, EXTRACT), REQUEST.model_copy(update={"response_format": other}))


async def test_readiness_is_shown_by_reading_one_token(lively: Loaded) -> None:
    read: list[int] = []
    hook = lively[0].model.register_forward_hook(lambda *_: read.append(1))
    model = for_task(lively)
    assert Capability.READINESS in model.capabilities
    await model.ready()
    assert read == [1]
    with torch.no_grad():
        lively[0].model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="computes no numbers"):
        await model.ready()
    await model.aclose()
    with pytest.raises(ModelError, match="closed"):
        await model.ready()
    hook.remove()


def test_an_answer_never_exceeds_the_models_context(lively: Loaded) -> None:
    lively[0].config.max_position_embeddings = 20
    found = ask(for_chat(lively), Request.ask("the card", max_tokens=10**6))[0]
    assert found.prompt_tokens + found.completion_tokens == 20
    assert found.finish_reason == "length"


def test_a_conversation_that_is_too_long_is_refused(lively: Loaded) -> None:
    manifest = Manifest(kind="chat", task=ANSWER, base="tiny", max_tokens=10)
    chat = for_chat(lively, "{% for m in messages %}{{ m.content }}{% endfor %}", manifest=manifest)
    messages = (Message(role="system", content="the card " * 20), Message(role="user", content="pin"))
    with pytest.raises(RequestRefused, match="messages: the instructions alone"):
        ask(chat, Request(messages=messages))


def test_a_request_without_a_system_message_gets_that_of_the_training_rows(lively: Loaded) -> None:
    words = "Be brief, and tell me more about the card and the refund please."
    manifest = Manifest(kind="chat", task=ANSWER, base="tiny", system=words)
    asked = Request.ask("pin", max_tokens=6)
    own = Request(messages=(Message(role="system", content="Another one."), *asked.messages), max_tokens=6)
    told = asked.model_copy(update={"messages": (Message(role="system", content=words), *asked.messages)})
    model = for_chat(lively, TEMPLATE, manifest=manifest)
    assert model.prompt.encode(asked) == model.prompt.encode(told) != model.prompt.encode(own)
    assert ask(model, asked)[0].text == ask(for_chat(lively, TEMPLATE), told)[0].text


def test_a_model_that_learnt_no_json_refuses_a_json_object_at_once(lively: Loaded) -> None:
    manifest = Manifest(kind="chat", task=ANSWER, base="tiny", writes_json=False)
    wanted = Request.ask("pin").model_copy(update={"response_format": ResponseFormat(kind="json_object")})
    with pytest.raises(RequestRefused, match="response_format: tiny was trained on answers that are no JSON objects"):
        ask(for_chat(lively, manifest=manifest), wanted)
    schema = ResponseFormat(kind="json_schema", json_schema=SCHEMA)
    wanted = wanted.model_copy(update={"response_format": schema, "max_tokens": 60})
    assert set(json.loads(ask(for_chat(lively, manifest=manifest), wanted)[0].text)) == {"item", "n"}


def test_a_field_left_out_has_the_probability_of_what_stands_in_its_place(tiny_fp32: Loaded) -> None:
    tokenizer = tiny_fp32[1]
    optional = {**SCHEMA, "properties": {"shop": {"type": "string"}, **SCHEMA["properties"]}, "required": []}
    grammar = Grammar.compile(optional, tokenizer)
    text = '{"item": "a"}'
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    starts = [len(b"".join(grammar.pieces(ids)[:i])) for i in range(len(ids) + 1)]
    chances = tuple(math.log(0.5) if starts[i + 1] == len(text) else 0.0 for i in range(len(ids)))
    found = field_confidence(GenerationResult(text, ids, chances, 1, "stop", 0.0), grammar)
    assert set(found) == {"shop", "item", "n"}
    assert found["shop"] == 1.0
    assert found["n"] == pytest.approx(0.5)
