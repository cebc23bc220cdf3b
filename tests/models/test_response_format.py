"""Schemas are compiled before they are sent, answers are checked, and a task's own schema wins over a request's."""

import asyncio
import threading
from typing import Any

import pytest

from smallfirst.base.errors import BadAnswer, ConfigError, RequestRefused
from smallfirst.models import response_format
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.protocol import Completion, ResponseFormat
from smallfirst.models.response_format import ResponseGrammars, check_response_format, json_format

OWN = {
    "type": "object",
    "properties": {"item": {"type": "string"}},
    "required": ["item"],
    "additionalProperties": False,
}
OTHER = OWN | {"properties": {"other": {"type": "integer"}}, "required": ["other"]}
UNWRITABLE = {"type": "array", "uniqueItems": True, "items": {"type": "string"}}


def wanted_json(schema: Any) -> ResponseFormat:
    return ResponseFormat(kind="json_schema", name="answer", json_schema=schema)


def grammar_of(tokenizer: Any, own: Any, wanted: ResponseFormat | None) -> Grammar | None:
    made = ResponseGrammars(own, tokenizer, name="orders")
    try:
        return asyncio.run(made.grammar_for(wanted))
    finally:
        made.close()


@pytest.mark.parametrize(
    "wanted", [ResponseFormat(kind="json_object"), wanted_json(OWN), wanted_json({k: OWN[k] for k in list(OWN)[:3]})]
)
def test_a_task_with_a_schema_follows_it(lively: tuple[Any, Any], wanted: ResponseFormat) -> None:
    made = ResponseGrammars(OWN, lively[1], name="orders")
    assert asyncio.run(made.grammar_for(wanted)) is asyncio.run(made.grammar_for(None))


def test_another_schema_than_the_tasks_is_refused(lively: tuple[Any, Any]) -> None:
    with pytest.raises(RequestRefused, match="the answers of orders follow the schema of its task"):
        grammar_of(lively[1], OWN, wanted_json(OTHER))


def test_compiling_blocks_nobody_and_is_limited_in_time(
    lively: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, release = ResponseGrammars(None, lively[1], name="orders"), threading.Event()
    monkeypatch.setattr(response_format, "COMPILE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(Grammar, "compile", lambda *_: release.wait(60))
    try:
        with pytest.raises(RequestRefused, match=r"it takes more than 0\.05 s to compile"):
            asyncio.run(made.grammar_for(wanted_json(OWN)))
    finally:
        release.set()
        made.close()


def test_a_schema_without_a_grammar_is_refused_with_the_reason(lively: tuple[Any, Any]) -> None:
    with pytest.raises(RequestRefused, match=r"response_format: no answer.*uniqueItems"):
        grammar_of(lively[1], None, wanted_json(UNWRITABLE))


@pytest.mark.parametrize(("text", "kept"), [
    ('{"item": "card"}', True), ('{"item": 3}', False), ('{"item": "card"', False),
    ('{"item": "card"} Have a good trip!', False), ("no", False),
])  # fmt: skip
def test_answers_are_validated_whole(text: str, kept: bool) -> None:
    assert json_format(OWN).accepts(text) is kept


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objct"}, "Invalid type"),
        ({"type": "string", "pattern": "(?=x)"}, "look-around"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "https://example.com/schema.json"}, "does not fetch"),
    ],
)
def test_a_schema_that_an_engine_would_drop_is_refused(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=f"no answer can be written under this schema: .*{why}"):
        json_format(schema)


async def test_only_an_answer_in_the_format_or_cut_off_passes_the_check() -> None:
    def answer(text: str, **more: Any) -> Completion:
        return Completion(text=text, answered_by="big", latency_ms=1, cost_usd=0, **more)

    await check_response_format(answer("free"), None)
    await check_response_format(answer('{"item": "card"}'), wanted_json(OWN))
    await check_response_format(answer('{"item": "ca', finish_reason="length"), wanted_json(OWN))
    with pytest.raises(BadAnswer, match="big did not keep to the response_format"):
        await check_response_format(answer('{"item": 3}'), wanted_json(OWN))
    with pytest.raises(RequestRefused, match="are labels"):
        await check_response_format(answer("card", alternatives=(("card", 1.0),)), wanted_json(OWN))
