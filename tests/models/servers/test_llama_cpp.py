"""A GGUF file in a child process: the tiny seeded model, run by the real engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.event_loop import in_loop
from fixtures.tiny_llama import LABELS, formed, given_config, given_gguf, opened  # noqa: F401

from smallfirst.errors import BadAnswer, ConfigError, RequestRefused, Unavailable
from smallfirst.models.protocol import Capability, Model, Request
from smallfirst.models.remote.http import HttpResponse, HttpSession
from smallfirst.models.response_format import FREE_TEXT, OutputFormat
from smallfirst.models.servers import llama_cpp
from smallfirst.models.servers.joined_server import blocking_session
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel, choice_grammar
from smallfirst.pricing.prices import PriceBook

COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
CLOSED = COLOUR | {"additionalProperties": False}
SHORT = Request.ask("card", max_tokens=1)
PROMPT = "where is my card, I want to know about the card please, " * 3


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The body of every request that reaches the engine."""
    bodies: list[dict[str, Any]] = []
    post = HttpSession.post

    async def recorded(self: HttpSession, path: str, body: bytes) -> HttpResponse:
        bodies.append(json.loads(body))
        return await post(self, path, body)

    monkeypatch.setattr(HttpSession, "post", recorded)
    return bodies


def test_grammar_admits_exactly_the_answers() -> None:
    assert choice_grammar(("card", 'a "b"\\')) == 'root ::= "card" | "a \\"b\\"\\\\"'


def test_missing_file_is_named(tiny_gguf: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.gguf: no such GGUF file"):
        LlamaCppModel(LlamaCppConfig(path=Path("none.gguf")), PriceBook())
    with pytest.raises(ConfigError, match=r"none\.gguf: no such GGUF file"):
        LlamaCppModel(LlamaCppConfig(path=tiny_gguf, adapter=Path("none.gguf")), PriceBook())


@in_loop
async def test_file_that_is_no_gguf_says_so(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    async with opened(LlamaCppConfig(path=path)) as model:
        with pytest.raises(Unavailable, match=r"broken.gguf did not load: .*exit code 1\n  next: check that it is a"):
            await model.complete(SHORT)


@in_loop
async def test_answers_are_limited_to_those_given(config: LlamaCppConfig) -> None:
    async with opened(config, answers=LABELS) as model:
        assert isinstance(model, Model)
        assert Capability.READINESS in model.capabilities
        found = await model.complete(Request.ask("I lost my card", max_tokens=16))
        assert found.text in LABELS
        assert found.answered_by == "tiny"
        assert found.cost_usd > 0
        assert found.prompt_tokens > found.completion_tokens > 0
        with pytest.raises(BadAnswer, match="next: raise max_tokens"):
            await model.complete(SHORT)
        assert (await model.complete(formed(CLOSED))).text in LABELS  # whatever the request asks for


@in_loop
async def test_tenants_never_reuse_each_others_prompts(config: LlamaCppConfig) -> None:
    async with opened(config.model_copy(update={"slots": 1})) as model:
        first, own, other, back, again = [await reused(model, tenant) for tenant in ("ann", "ann", "bob", "ann", "ann")]
    assert (first, other, back) == (0, 0, 0)
    assert own == again > 20


async def reused(model: LlamaCppModel, tenant: str) -> int:
    """Prompt tokens that the engine took from its cache, as it reports itself."""
    request = Request.ask(PROMPT, max_tokens=1).model_copy(update={"tenant": tenant})
    async with model.server().lease(request) as lease:
        body = {"messages": [message.model_dump() for message in request.messages], "max_tokens": 1}
        body |= llama_cpp._extra_body(request, FREE_TEXT, lease.slot, False)

        def send() -> dict[str, Any]:
            with blocking_session(lease.process, 60) as session:
                return json.loads(session.read(session.send("POST", "/v1/chat/completions", body)))

        reply = await asyncio.to_thread(send)
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])


@in_loop
async def test_only_known_fields_reach_the_engine(config: LlamaCppConfig, sent: list[dict[str, Any]]) -> None:
    request = formed(CLOSED).model_copy(update={"tags": {"n_discard": "-1"}, "tenant": "ann", "stop": ("#",)})
    async with opened(config) as model:
        await model.complete(request)
        await model.complete(request)
    first, second = sent
    expected = {"model", "messages", "max_tokens", "temperature", "stop", "stream", "stream_options"}
    assert set(first) == expected | {"chat_template_kwargs", "grammar", "id_slot", "cache_prompt"}
    assert (first["id_slot"], first["cache_prompt"]) == (0, False)
    assert (second["id_slot"], second["cache_prompt"]) == (0, True)


@in_loop
async def test_answer_follows_the_format_of_the_request(config: LlamaCppConfig) -> None:
    async with opened(config) as model:
        pieces = [piece.text async for piece in model.stream(formed(CLOSED))]
        whole = await model.complete(formed(CLOSED))
        cut = await model.complete(formed(CLOSED, max_tokens=4))
        assert whole.text in ('{"colour": "red"}', '{"colour": "blue"}')
        assert pieces == [whole.text, ""]
        assert cut.finish_reason == "length"
        assert whole.text.startswith(cut.text)
        assert (await model.complete(formed(None, max_tokens=300))).text.startswith("{")


@in_loop
async def test_schema_that_makes_no_grammar_is_refused(config: LlamaCppConfig) -> None:
    bad = {"type": "string", "pattern": "(?=x)"}
    with pytest.raises(ConfigError, match="no answer can be written under this schema"):
        LlamaCppModel(config, PriceBook(), schema=bad)
    async with opened(config) as model:
        with pytest.raises(RequestRefused, match="look-around"):
            await model.complete(formed(bad))


@in_loop
async def test_answer_without_its_format_is_requested_once_more(
    config: LlamaCppConfig, sent: list[dict[str, Any]]
) -> None:
    async with opened(config, schema=CLOSED) as model:
        assert model.output_format is not None
        # As if the engine had dropped the grammar.
        model.output_format = OutputFormat('root ::= "no"', model.output_format.accepts)
        with pytest.raises(BadAnswer, match="tiny wrote what its schema forbids"):
            await model.complete(Request.ask("card"))
    assert [body["cache_prompt"] for body in sent] == [False, False]


@in_loop
async def test_adapter_is_on_for_every_request(config: LlamaCppConfig, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter.gguf")
    answers: list[str] = []
    for one in (config, config.model_copy(update={"adapter": tmp_path / "adapter.gguf"})):
        async with opened(one) as model:
            answers += [(await model.complete(Request.ask(PROMPT, max_tokens=8))).text for _ in range(2)]
    assert answers[0] == answers[1] != answers[2] == answers[3]


def write_adapter(path: Path) -> None:
    """A large seeded change of rank 2 to a matrix of each layer of the tiny model."""
    import gguf

    drawn = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)
    for layer in range(2):
        writer.add_tensor(f"blk.{layer}.ffn_up.weight.lora_a", drawn.normal(size=(2, 32)).astype(np.float32))
        writer.add_tensor(f"blk.{layer}.ffn_up.weight.lora_b", drawn.normal(size=(64, 2)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@in_loop
async def test_free_text_is_streamed(config: LlamaCppConfig) -> None:
    async with opened(config) as model:
        *pieces, last = [piece async for piece in model.stream(Request.ask("Hi", max_tokens=4))]
    assert len(pieces) > 1
    assert last.completion is not None
    assert last.completion.text == "".join(piece.text for piece in pieces)
    assert last.completion.finish_reason == "length"
