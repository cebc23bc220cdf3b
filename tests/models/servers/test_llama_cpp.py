"""A GGUF file in a child process: the tiny seeded model, run by the real engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.event_loop import in_loop
from fixtures.tiny_llama import LABELS, ask, formed, given_config, given_gguf, given_model, opened  # noqa: F401

from smallfirst.errors import BadAnswer, ConfigError, RequestRefused, Unavailable
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request
from smallfirst.models.remote.http import HttpResponse, HttpSession
from smallfirst.models.response_format import FREE_TEXT, OutputFormat
from smallfirst.models.servers import llama_cpp
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel, choice_grammar
from smallfirst.pricing import PriceBook

COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
CLOSED = COLOUR | {"additionalProperties": False}
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


def test_file_that_is_no_gguf_says_so(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    model = LlamaCppModel(LlamaCppConfig(path=path), PriceBook())
    with pytest.raises(Unavailable) as caught:
        asyncio.run(model.complete(Request.ask("Hi")))
    assert str(caught.value).startswith(f"{path} did not load: ")
    assert "exit code 1" in str(caught.value)
    assert "next: check that it is a complete GGUF file" in str(caught.value)
    asyncio.run(model.aclose())


def test_model_can_write_only_one_of_the_answers(model: LlamaCppModel) -> None:
    completion = ask(model)
    assert isinstance(model, Model)
    assert Capability.READINESS in model.capabilities
    assert completion.text in LABELS
    assert completion.answered_by == "tiny"
    assert completion.cost_usd > 0
    assert completion.prompt_tokens > completion.completion_tokens > 0


def test_answer_that_was_cut_off_is_a_bad_answer(config: LlamaCppConfig) -> None:
    model = LlamaCppModel(config, PriceBook(), answers=("supercalifragilistic",))
    with pytest.raises(BadAnswer, match="next: raise max_tokens"):
        ask(model, max_tokens=1)
    asyncio.run(model.aclose())


def test_tenants_never_meet_each_others_prompts(config: LlamaCppConfig) -> None:
    """With one slot: what is left of a prompt is used for its own tenant only, and not after another one came."""

    async def run() -> list[int]:
        async with opened(config.model_copy(update={"slots": 1})) as model:
            return [await reused(model, tenant) for tenant in ("ann", "ann", "bob", "ann", "ann")]

    first, own, other, back, again = asyncio.run(run())
    assert (first, other, back) == (0, 0, 0)
    assert own == again > 20


async def reused(model: LlamaCppModel, tenant: str) -> int:
    """Prompt tokens that the engine took from its cache, as it reports itself."""
    request = Request.ask(PROMPT, max_tokens=1).model_copy(update={"tenant": tenant})
    async with model.server().lease(request) as lease:
        body = {"messages": [message.model_dump() for message in request.messages], "max_tokens": 1}
        body |= llama_cpp._extra_body(request, FREE_TEXT, lease.slot, False)

        def send() -> dict[str, Any]:
            with lease.process.session(60) as session:
                return json.loads(session.read(session.send("POST", "/v1/chat/completions", body)))

        reply = await asyncio.to_thread(send)
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_only_known_fields_reach_the_engine(config: LlamaCppConfig, sent: list[dict[str, Any]]) -> None:
    request = formed(CLOSED).model_copy(update={"tags": {"n_discard": "-1"}, "tenant": "ann", "stop": ("#",)})

    async def run() -> None:
        async with opened(config) as model:
            await model.complete(request)
            await model.complete(request)

    asyncio.run(run())
    first, second = sent
    expected = {"model", "messages", "max_tokens", "temperature", "stop", "stream", "stream_options"}
    assert set(first) == expected | {"chat_template_kwargs", "grammar", "id_slot", "cache_prompt"}
    assert (first["id_slot"], first["cache_prompt"]) == (0, False)
    assert (second["id_slot"], second["cache_prompt"]) == (0, True)


def test_answer_keeps_to_the_form_of_the_request(config: LlamaCppConfig) -> None:
    async def run() -> tuple[Completion, list[Chunk], Completion]:
        async with opened(config) as model:
            pieces = [piece async for piece in model.stream(formed(CLOSED))]
            return await model.complete(formed(CLOSED)), pieces, await model.complete(formed(CLOSED, max_tokens=4))

    whole, pieces, cut = asyncio.run(run())
    assert whole.text in ('{"colour": "red"}', '{"colour": "blue"}')
    assert [piece.text for piece in pieces] == [whole.text, ""]
    assert cut.finish_reason == "length"
    assert whole.text.startswith(cut.text)


def test_any_object_is_an_object(config: LlamaCppConfig) -> None:
    async def run() -> Completion:
        async with opened(config) as model:
            return await model.complete(formed(None, max_tokens=300))

    assert asyncio.run(run()).text.startswith("{")


@in_loop
async def test_schema_that_makes_no_grammar_is_refused(config: LlamaCppConfig) -> None:
    bad = {"type": "string", "pattern": "(?=x)"}
    with pytest.raises(ConfigError, match="no answer can be written under this schema"):
        LlamaCppModel(config, PriceBook(), schema=bad)
    async with opened(config) as model:
        with pytest.raises(RequestRefused, match="look-around"):
            await model.complete(formed(bad))


def test_models_own_form_goes_before_the_requests(config: LlamaCppConfig) -> None:
    async def run() -> str:
        async with opened(config, answers=("yes", "no")) as model:
            return (await model.complete(formed(CLOSED))).text

    assert asyncio.run(run()) in ("yes", "no")


def test_form_that_was_dropped_is_asked_again_once(config: LlamaCppConfig, sent: list[dict[str, Any]]) -> None:
    """As if the engine had dropped the grammar: it is told another one."""

    async def run() -> None:
        async with opened(config, schema=CLOSED) as model:
            assert model.output_format is not None
            model.output_format = OutputFormat('root ::= "no"', model.output_format.accepts)
            with pytest.raises(BadAnswer, match="tiny wrote what its schema forbids"):
                await model.complete(Request.ask("card"))

    asyncio.run(run())
    assert [body["cache_prompt"] for body in sent] == [False, False]


def test_adapter_is_on_for_every_request(config: LlamaCppConfig, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    write_adapter(adapter)

    async def answers(config: LlamaCppConfig) -> list[str]:
        async with opened(config) as model:
            return [(await model.complete(Request.ask(PROMPT, max_tokens=8))).text for _ in range(2)]

    plain = asyncio.run(answers(config))
    adapted = asyncio.run(answers(config.model_copy(update={"adapter": adapter})))
    assert plain[0] == plain[1]
    assert adapted[0] == adapted[1]
    assert plain[0] != adapted[0]


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


def test_free_text_is_streamed(config: LlamaCppConfig) -> None:
    async def collect() -> list[Chunk]:
        async with opened(config) as model:
            return [piece async for piece in model.stream(Request.ask("Hi", max_tokens=4))]

    *pieces, last = asyncio.run(collect())
    assert len(pieces) > 1
    assert last.completion is not None
    assert last.completion.text == "".join(piece.text for piece in pieces)
    assert last.completion.finish_reason == "length"
