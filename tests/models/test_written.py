"""Models that write: a fine-tuned one under its task's schema, a chat model through its template."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from smallfirst.data.dataset import Message
from smallfirst.models.confidence import Calibration, Steps
from smallfirst.models.folder import load_model
from smallfirst.models.grammar import Grammar
from smallfirst.models.local import encode_prompt
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.models.model import Completion, Model, Request
from smallfirst.models.writing import Ask, TextWriter, Written
from smallfirst.models.written import LocalChat, WrittenModel, field_confidence
from smallfirst.pricing import MachinePrice
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.extract import Extract

SCHEMA = {
    "type": "object",
    "properties": {"item": {"type": "string"}, "n": {"type": ["integer", "null"]}},
    "required": ["item", "n"],
    "additionalProperties": False,
}
EXTRACT = Extract(name="orders", json_schema=SCHEMA, max_answer_tokens=40)
ANSWER = Answer(name="rules", max_answer_tokens=6)


def ask(model: Model, *requests: Request) -> list[Completion]:
    """Answers to requests made at the same moment; the model is closed."""

    async def together() -> list[Completion]:
        found = await asyncio.gather(*(model.complete(request) for request in requests))
        await model.aclose()
        return found

    return asyncio.run(together())


def test_it_is_asked_as_in_training(tiny_fp32: tuple[Any, Any]) -> None:
    writer = TextWriter(*tiny_fp32)
    found = ask(WrittenModel(writer, Manifest(kind="writes", task=ANSWER, base="tiny")), Request.ask("the card"))[0]
    ids = encode_prompt(writer.tokenizer, ANSWER.prompt("the card"), 512)
    wanted = writer.write([Ask(ids, 6)])[0]
    assert found.text == wanted.text.strip()
    assert found.completion_tokens == len(wanted.token_ids) == 6
    assert found.prompt_tokens == len(ids)
    assert found.finish_reason == "length"
    assert found.confidence == pytest.approx(math.exp(sum(wanted.log_probabilities)), rel=1e-3)


def test_json_follows_the_schema_and_every_field_has_its_confidence(tiny_fp32: tuple[Any, Any]) -> None:
    model = WrittenModel(TextWriter(*tiny_fp32), Manifest(kind="writes", task=EXTRACT, base="tiny"))
    for found in ask(model, Request.ask("two cards"), Request.ask("a refund, it is late")):
        value = json.loads(found.text)
        assert set(value) == {"item", "n"}
        assert set(found.field_confidence) == {"item", "n"}
        assert all(0 <= p <= 1 for p in found.field_confidence.values())
        assert found.confidence is not None
        assert found.confidence <= min(found.field_confidence.values()) + 1e-9


def test_a_calibration_speaks_instead_of_the_raw_probability(tiny_fp32: tuple[Any, Any]) -> None:
    flat = Calibration(
        weights=(0.0,) * 4, centres=(0.0,) * 4, scales=(1.0,) * 4, steps=Steps(x=(-1.0, 1.0), y=(0.7, 0.7)), n_rows=50
    )
    manifest = Manifest(kind="writes", task=ANSWER, base="tiny", calibration=flat)
    found = ask(WrittenModel(TextWriter(*tiny_fp32), manifest), Request.ask("the card"))[0]
    assert found.confidence == pytest.approx(0.7, abs=0.002)


def test_time_is_money(tiny_fp32: tuple[Any, Any]) -> None:
    price = MachinePrice(usd_per_hour=3600, utilisation=0.5)
    model = WrittenModel(TextWriter(*tiny_fp32), Manifest(kind="writes", task=ANSWER, base="tiny"), price=price)
    found = ask(model, Request.ask("the card"))[0]
    assert 0 < found.cost_usd <= 2 * found.latency_ms / 1000


def test_a_folder_of_a_writing_model_gives_a_writing_model(tiny_folder: Path) -> None:
    write_manifest(tiny_folder, Manifest(kind="writes", task=ANSWER, base="tiny"))
    try:
        model = load_model(tiny_folder, name="rules-small")
        assert isinstance(model, WrittenModel)
        assert ask(model, Request.ask("the card"))[0].answered_by == "rules-small"
    finally:
        (tiny_folder / "smallfirst.json").unlink()


def test_a_chat_model_reads_the_whole_conversation_through_its_template(tiny_fp32: tuple[Any, Any]) -> None:
    writer = TextWriter(*tiny_fp32)
    writer.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="the card"))
    chat = LocalChat(writer, name="tiny", schema=SCHEMA)
    found = ask(chat, Request(messages=messages, max_tokens=30))[0]
    assert found.prompt_tokens == len(writer.tokenizer.encode("system:Be brief.\nuser:the card\n"))
    assert set(json.loads(found.text)) == {"item", "n"}
    assert found.answered_by == "tiny"


def test_a_fields_confidence_is_that_of_its_values_tokens_only(tiny_fp32: tuple[Any, Any]) -> None:
    _, tokenizer = tiny_fp32
    grammar = Grammar.compile(SCHEMA, tokenizer)
    text = '{"item": "größe", "n": 41}'
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    pieces = grammar.pieces(ids)
    halves = tuple(math.log(0.5) for _ in ids)
    found = field_confidence(Written(text, ids, halves, 1, "stop", 0.0), grammar)
    starts = [len(b"".join(pieces[:i])) for i in range(len(ids) + 1)]
    for path, value in (("item", '"größe"'), ("n", "41")):
        left = text.encode().index(value.encode())
        right = left + len(value.encode())
        n_touching = sum(starts[i] < right and starts[i + 1] > left for i in range(len(ids)))
        assert found[path] == pytest.approx(0.5**n_touching)
