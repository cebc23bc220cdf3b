"""A model's own form stays; free text takes the one a request asks for."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import jsonschema
import pytest

from smallfirst.errors import ConfigError, RequestRefused
from smallfirst.models.generation import grammar as grammars
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.grammar import Grammar, GrammarCache
from smallfirst.models.generation.response_format import AnswerForm
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.protocol import ResponseFormat

OWN = {
    "type": "object",
    "properties": {"item": {"type": "string"}},
    "required": ["item"],
    "additionalProperties": False,
}
OTHER = OWN | {"properties": {"other": {"type": "integer"}}, "required": ["other"]}
UNWRITABLE = {"type": "array", "uniqueItems": True, "items": {"type": "string"}}


def asked(schema: Any) -> ResponseFormat:
    return ResponseFormat(kind="json_schema", name="answer", json_schema=schema)


def form(tokenizer: Any, own: Any, wanted: ResponseFormat | None) -> Grammar | None:
    made = AnswerForm(own, tokenizer, name="orders")
    try:
        return asyncio.run(made.of(wanted))
    finally:
        made.close()


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        ResponseFormat(kind="json_object"),
        asked(OWN),
        asked({k: OWN[k] for k in list(OWN)[:3]}),
    ],
)
def test_a_task_with_a_form_keeps_to_it(lively: tuple[Any, Any], wanted: ResponseFormat | None) -> None:
    made = AnswerForm(OWN, lively[1], name="orders")
    assert asyncio.run(made.of(wanted)) is asyncio.run(made.of(None))


def test_another_schema_is_refused_where_the_task_has_one(lively: tuple[Any, Any]) -> None:
    with pytest.raises(RequestRefused, match="orders's answers is fixed by its task"):
        form(lively[1], OWN, asked(OTHER))


def test_free_text_takes_the_form_that_is_asked_for(lively: tuple[Any, Any]) -> None:
    writer = Generator(*lively)
    assert form(writer.tokenizer, None, None) is None
    for wanted, schema in ((asked(OTHER), OTHER), (ResponseFormat(kind="json_object"), {"type": "object"})):
        text = writer.write([GenerationRequest([5, 6, 7], 40)], form(writer.tokenizer, None, wanted))[0].text
        jsonschema.validate(json.loads(text), schema)


def test_a_schema_that_makes_no_grammar_names_the_rule(lively: tuple[Any, Any]) -> None:
    with pytest.raises(RequestRefused, match=r"response_format: no answer.*uniqueItems"):
        form(lively[1], None, asked(UNWRITABLE))


def test_grammars_are_kept_by_their_schema_and_the_oldest_goes(lively: tuple[Any, Any]) -> None:
    kept = GrammarCache(lively[1], most=2)

    async def play() -> None:
        first = await kept.grammar({"enum": ["a"]})
        assert await kept.grammar({"enum": ["a"]}) is first
        await kept.grammar({"enum": ["b"]})
        assert await kept.grammar({"enum": ["a"]}) is first
        await kept.grammar({"enum": ["c"]})
        assert len(kept) == 2
        assert await kept.grammar({"enum": ["a"]}) is first
        await kept.grammar({"enum": ["b"]})
        assert await kept.grammar({"enum": ["a"]}) is first

    asyncio.run(play())
    kept.close()


def test_the_order_of_properties_is_part_of_a_form(lively: tuple[Any, Any]) -> None:
    kept = GrammarCache(lively[1])
    both = {"a": {"type": "integer"}, "b": {"type": "integer"}}
    turned = dict(reversed(both.items()))

    async def play() -> None:
        one = await kept.grammar({"type": "object", "properties": both})
        assert await kept.grammar({"type": "object", "properties": turned}) is not one

    asyncio.run(play())
    kept.close()


def test_compiling_stops_nobody_and_takes_no_longer_than_it_may(
    lively: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = GrammarCache(lively[1])
    monkeypatch.setattr(grammars, "COMPILE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(Grammar, "compile", lambda *_: time.sleep(1))

    async def play() -> int:
        ticks = 0
        compiling = asyncio.create_task(kept.grammar({"enum": ["a"]}))
        while not compiling.done():
            await asyncio.sleep(0.01)
            ticks += 1
        with pytest.raises(ConfigError, match=r"more than 0.2 s to compile"):
            await compiling
        return ticks

    assert asyncio.run(play()) >= 3
    kept.close()
