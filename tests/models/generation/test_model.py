"""Models that write: a fine-tuned one under its task's schema, a chat model through its template."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from smallfirst.data.dataset import Message
from smallfirst.errors import ModelError, RequestRefused
from smallfirst.models.confidence import Calibration, IsotonicCurve
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.model import GenerativeModel, field_confidence
from smallfirst.models.generation.sequence import GenerationRequest, GenerationResult
from smallfirst.models.loading import load_model
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.models.protocol import Capability, Chunk, Completion, Embeddings, Model, Request, ResponseFormat
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
    writer = Generator(*tiny_fp32)
    found = ask(
        GenerativeModel.for_task(writer, Manifest(kind="writes", task=ANSWER, base="tiny")), Request.ask("the card")
    )[0]
    ids = encode_prompt(writer.tokenizer, ANSWER.prompt("the card"), 512)
    wanted = writer.generate([GenerationRequest(ids, 6)])[0]
    assert found.text == wanted.text.strip()
    assert found.completion_tokens == len(wanted.token_ids) == 6
    assert found.prompt_tokens == len(ids)
    assert found.finish_reason == "length"
    assert found.confidence == pytest.approx(math.exp(sum(wanted.log_probabilities)), rel=1e-3)


def test_json_follows_the_schema_and_every_field_has_its_confidence(tiny_fp32: tuple[Any, Any]) -> None:
    model = GenerativeModel.for_task(Generator(*tiny_fp32), Manifest(kind="writes", task=EXTRACT, base="tiny"))
    for found in ask(model, Request.ask("two cards"), Request.ask("a refund, it is late")):
        value = json.loads(found.text)
        assert set(value) == {"item", "n"}
        assert set(found.field_confidence) == {"item", "n"}
        assert all(0 <= p <= 1 for p in found.field_confidence.values())
        assert found.confidence is not None
        assert found.confidence <= min(found.field_confidence.values()) + 1e-9


def test_a_calibration_speaks_instead_of_the_raw_probability(tiny_fp32: tuple[Any, Any]) -> None:
    flat = Calibration(
        weights=(0.0,) * 4,
        centres=(0.0,) * 4,
        scales=(1.0,) * 4,
        steps=IsotonicCurve(x=(-1.0, 1.0), y=(0.7, 0.7)),
        n_rows=50,
    )
    manifest = Manifest(kind="writes", task=ANSWER, base="tiny", calibration=flat)
    found = ask(GenerativeModel.for_task(Generator(*tiny_fp32), manifest), Request.ask("the card"))[0]
    assert found.confidence == pytest.approx(0.7, abs=0.002)


def test_time_is_money(tiny_fp32: tuple[Any, Any]) -> None:
    price = MachinePrice(usd_per_hour=3600, utilisation=0.5)
    model = GenerativeModel.for_task(
        Generator(*tiny_fp32), Manifest(kind="writes", task=ANSWER, base="tiny"), price=price
    )
    found = ask(model, Request.ask("the card"))[0]
    assert 0 < found.cost_usd <= 2 * found.latency_ms / 1000


def test_a_folder_of_a_writing_model_gives_a_writing_model(tiny_folder: Path) -> None:
    write_manifest(tiny_folder, Manifest(kind="writes", task=ANSWER, base="tiny"))
    try:
        model = load_model(tiny_folder, name="rules-small")
        assert isinstance(model, GenerativeModel)
        assert ask(model, Request.ask("the card"))[0].answered_by == "rules-small"
    finally:
        (tiny_folder / "smallfirst.json").unlink()


def test_a_chat_model_reads_the_whole_conversation_through_its_template(tiny_fp32: tuple[Any, Any]) -> None:
    writer = Generator(*tiny_fp32)
    writer.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="the card"))
    chat = GenerativeModel.for_chat(writer, name="tiny", schema=SCHEMA)
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
    found = field_confidence(GenerationResult(text, ids, halves, 1, "stop", 0.0), grammar)
    starts = [len(b"".join(pieces[:i])) for i in range(len(ids) + 1)]
    for path, value in (("item", '"größe"'), ("n", "41")):
        left = text.encode().index(value.encode())
        right = left + len(value.encode())
        n_touching = sum(starts[i] < right and starts[i + 1] > left for i in range(len(ids)))
        assert found[path] == pytest.approx(0.5**n_touching)


def stream(model: Model, request: Request) -> list[Chunk]:
    """All chunks; the model is closed."""

    async def play() -> list[Chunk]:
        chunks = [chunk async for chunk in model.stream(request)]
        await model.aclose()
        return chunks

    return asyncio.run(play())


def written(lively: tuple[Any, Any], task: Any = ANSWER, **more: Any) -> GenerativeModel:
    return GenerativeModel.for_task(Generator(*lively), Manifest(kind="writes", task=task, base="tiny", **more))


@pytest.mark.parametrize("task", [ANSWER.model_copy(update={"max_answer_tokens": 30}), EXTRACT])
def test_a_stream_says_piece_by_piece_what_the_whole_answer_says(lively: tuple[Any, Any], task: Any) -> None:
    request = Request.ask("where is my refund").model_copy(update={"logprobs": 2})
    (whole,) = ask(written(lively, task), request)
    *pieces, last = stream(written(lively, task), request)
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == whole.text
    assert sum((piece.tokens for piece in pieces), ()) == whole.tokens
    assert last.completion is not None
    assert last.completion.model_dump(exclude={"latency_ms", "cost_usd"}) == whole.model_dump(
        exclude={"latency_ms", "cost_usd"}
    )


def test_tokens_are_told_only_if_wanted_and_add_up_to_the_text(lively: tuple[Any, Any]) -> None:
    plain, told = (Request.ask("the card"), Request.ask("the card").model_copy(update={"logprobs": 3}))
    silent, found = ask(written(lively), plain, told)
    assert silent.tokens == ()
    assert len(found.tokens) == found.completion_tokens
    assert b"".join(bytes(token.octets) for token in found.tokens).decode("utf-8", "replace").strip() == found.text
    for token in found.tokens:
        assert token.text == bytes(token.octets).decode("utf-8", "replace")
        assert len(token.top) == 3
        assert token.top[0] == (token.text, token.logprob)
    assert math.exp(sum(token.logprob for token in found.tokens)) == pytest.approx(found.confidence, rel=1e-6)


def test_forced_tokens_are_certain_and_their_own_alternative(lively: tuple[Any, Any]) -> None:
    found = ask(written(lively, EXTRACT), Request.ask("two cards").model_copy(update={"logprobs": 5}))[0]
    first = found.tokens[0]
    assert (first.logprob, first.top) == (0.0, ((first.text, 0.0),))
    assert "".join(token.text for token in found.tokens).startswith('{"item": "')


def test_a_request_may_give_free_text_a_form(lively: tuple[Any, Any]) -> None:
    form = ResponseFormat(kind="json_schema", json_schema=SCHEMA)
    room = ANSWER.model_copy(update={"max_answer_tokens": 40})
    formed = Request.ask("the card").model_copy(update={"response_format": form})
    found = ask(written(lively, room), formed, Request.ask("the card"))
    assert set(json.loads(found[0].text)) == {"item", "n"}
    assert set(found[0].field_confidence) == {"item", "n"}
    assert not found[1].text.startswith("{")
    other = form.model_copy(update={"json_schema": {"type": "object", "properties": {"item": {"type": "string"}}}})
    another = Request.ask("x").model_copy(update={"response_format": other})
    with pytest.raises(RequestRefused, match="follow the schema of its task"):
        ask(written(lively, EXTRACT), another)


def test_a_model_that_is_asked_whether_it_is_ready_reads_a_token(lively: tuple[Any, Any]) -> None:
    read: list[int] = []
    hook = lively[0].model.register_forward_hook(lambda *_: read.append(1))
    model = written(lively)

    async def play() -> None:
        await model.ready()
        assert read == [1]
        with torch.no_grad():
            lively[0].model.norm.weight.fill_(float("nan"))
        with pytest.raises(ModelError, match="computes no numbers"):
            await model.ready()
        await model.aclose()
        with pytest.raises(ModelError, match="closed"):
            await model.ready()

    asyncio.run(play())
    hook.remove()
    assert Capability.READINESS in model.capabilities


def test_a_text_as_a_vector_is_the_mean_of_its_tokens_states(lively: tuple[Any, Any]) -> None:
    model, tokenizer = lively
    texts = ["the card", "", "where is my refund please, it is late " * 3, "pin"]
    mine = written(lively)

    async def play() -> Embeddings:
        found = await mine.embed(texts)
        await mine.aclose()
        return found

    found = asyncio.run(play())
    assert Capability.EMBEDDINGS in mine.capabilities
    n_tokens = 0
    for text, vector in zip(texts, found.vectors, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        n_tokens += len(ids)
        with torch.inference_mode():
            states = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        mean = (states[1:] if len(ids) > 1 else states).mean(dim=0)
        assert vector == pytest.approx((mean / mean.norm()).tolist(), abs=1e-4)
    assert found.n_tokens == n_tokens
    assert found.cost_usd > 0


def test_an_answer_never_outgrows_the_models_context(lively: tuple[Any, Any]) -> None:
    lively[0].config.max_position_embeddings = 20
    chat = GenerativeModel.for_chat(Generator(*lively, end=-1), name="tiny")
    found = ask(chat, Request.ask("the card", max_tokens=10**6))[0]
    assert found.prompt_tokens + found.completion_tokens == 20
    assert found.finish_reason == "length"


def test_only_what_the_operator_declares_is_remembered(lively: tuple[Any, Any]) -> None:
    writer = Generator(*lively)
    writer.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    system = Message(role="system", content="Be brief, and tell me more about the card and the refund please.")
    asked = [Request(messages=(system, Message(role="user", content=text)), max_tokens=6) for text in ("pin", "card")]
    strange = Request(messages=(Message(role="system", content="Another one " * 9), *asked[0].messages), max_tokens=6)
    wanted = [found.text for found in ask(GenerativeModel.for_chat(writer, name="tiny"), *asked)]
    assert not writer._prefixes
    found = ask(GenerativeModel.for_chat(writer, name="tiny", declared=(system,)), strange, *asked)
    assert [one.text for one in found[1:]] == wanted
    ((_, ids),) = writer._prefixes
    assert writer.tokenizer.decode(ids).startswith(f"system:{system.content}")
    assert "pin" not in writer.tokenizer.decode(ids)


def test_a_tasks_own_beginning_is_remembered(lively: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    beginning = "tell me more about your card please, and about the refund that is late again: "
    plain = Answer.prompt
    monkeypatch.setattr(Answer, "prompt", lambda self, text: beginning + plain(self, text))
    model = written(lively)
    found = ask(model, Request.ask("pin"), Request.ask("where is it"))
    prefixes = model.scheduler.generator._prefixes
    ((_, ids),) = prefixes
    assert beginning.strip().startswith(lively[1].decode(ids, skip_special_tokens=True).strip())
    ids = encode_prompt(lively[1], beginning + plain(ANSWER, "pin"), 512)
    assert found[0].text == Generator(*lively).generate([GenerationRequest(ids, 6)])[0].text.strip()


def test_a_client_that_leaves_a_stream_frees_its_row(lively: tuple[Any, Any]) -> None:
    chat = GenerativeModel.for_chat(Generator(*lively, end=-1), name="tiny")

    async def play() -> None:
        chunks = chat.stream(Request.ask("the card", max_tokens=400))
        await anext(chunks)
        assert chat.scheduler.n_running == 1
        await chunks.aclose()
        async with asyncio.timeout(20):
            while chat.scheduler.n_running:
                await asyncio.sleep(0.002)
        await chat.aclose()

    asyncio.run(play())


def test_a_conversation_that_is_too_long_is_refused(lively: tuple[Any, Any]) -> None:
    writer = Generator(*lively)
    writer.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = GenerativeModel.for_chat(writer, name="tiny", max_tokens=10)
    messages = (Message(role="system", content="the card " * 20), Message(role="user", content="pin"))
    with pytest.raises(RequestRefused, match="messages: the instructions alone"):
        ask(chat, Request(messages=messages))
