"""A grammar allows what its schema allows, in the canonical spacing, and knows how to end soon."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import jsonschema
import pytest

from smallfirst.errors import ConfigError, ModelError
from smallfirst.models.generation import grammar as grammars
from smallfirst.models.generation.grammar import MAX_NUMBER, Grammar, GrammarCache, with_number_bounds


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


NASTY = {
    "nullable enum": closed(size={"enum": ["s", "m", None]}),
    "unicode": closed(größe={"enum": ["läßt", "日本", "🙂"]}),
    "quotes and dots in keys": closed(**{'a "b".c\\d': {"type": "boolean"}}),
    "nested lists": closed(rows={"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
    "lists that must be long": closed(pair={"type": "array", "items": {"type": "string"}, "minItems": 3}),
    "definitions": closed(a={"$ref": "#/$defs/x"}) | {"$defs": {"x": closed(b={"type": ["string", "null"]})}},
    "recursion": closed(tree={"$ref": "#/$defs/t"})
    | {
        "$defs": {"t": {"type": "object", "properties": {"next": {"$ref": "#/$defs/t"}}, "additionalProperties": False}}
    },
    "ranges": closed(n={"type": "integer", "minimum": 17, "maximum": 19}),
    "a pattern": closed(code={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}),
    "a date": closed(day={"type": "string", "format": "date"}),
    "a length": closed(s={"type": "string", "minLength": 5, "maxLength": 6}),
    "one of several": closed(v={"anyOf": [{"type": "number"}, closed(w={"type": "string"})]}),
}


def spell(grammar: Grammar, tokenizer: Any, text: str) -> bool:
    """True if the grammar takes exactly this text."""
    follower = grammar.start()
    done = tokenizer.decode(follower.begin())
    while not follower.finished:
        allowed = follower.allowed()
        rest = text[len(done) :]
        fits = [
            t for t in range(len(allowed)) if allowed[t] and (word := tokenizer.decode([t])) and rest.startswith(word)
        ]
        if not fits:
            return False
        token = max(fits, key=lambda t: len(tokenizer.decode([t])))
        done += tokenizer.decode([token, *follower.take(token)])
    return done == text


@pytest.fixture
def tokenizer(tiny_fp32: tuple[Any, Any]) -> Any:
    return tiny_fp32[1]


@pytest.mark.parametrize("name", NASTY)
def test_the_shortest_way_out_is_valid(name: str, tokenizer: Any) -> None:
    grammar = Grammar.compile(NASTY[name], tokenizer)
    follower = grammar.start()
    tokens = follower.begin()
    while not follower.finished:
        token = follower.closing(follower.allowed())
        tokens += [token, *follower.take(token)]
    jsonschema.validate(json.loads(tokenizer.decode(tokens)), NASTY[name])
    assert len(tokens) == grammar.closing_tokens


def test_it_takes_the_canonical_spacing_only(tokenizer: Any) -> None:
    grammar = Grammar.compile(closed(card={"type": "string"}, pin={"type": "integer"}), tokenizer)
    assert spell(grammar, tokenizer, '{"card": "late", "pin": 4}')
    assert not spell(grammar, tokenizer, '{"card":"late","pin":4}')
    assert not spell(grammar, tokenizer, '{"pin": 4, "card": "late"}')
    assert not spell(grammar, tokenizer, '{"card": "late", "pin": "4"}')


def test_a_token_that_is_not_allowed_is_an_error(tokenizer: Any) -> None:
    follower = Grammar.compile(closed(a={"type": "null"}), tokenizer).start()
    follower.begin()
    forbidden = next(t for t, ok in enumerate(follower.allowed()) if not ok)
    with pytest.raises(ModelError, match="left at token"):
        follower.take(forbidden)


def test_a_matcher_that_gives_up_is_no_end_of_an_answer(tokenizer: Any) -> None:
    follower = Grammar.compile(closed(a={"type": "null"}), tokenizer).start()
    follower._matcher.consume_token(0)
    assert follower._matcher.is_stopped()
    with pytest.raises(ModelError, match="could not be followed"):
        _ = follower.finished
    with pytest.raises(ModelError, match="could not be followed"):
        follower.allowed()


def test_two_answers_of_one_grammar_do_not_meet(tokenizer: Any) -> None:
    grammar = Grammar.compile(closed(a={"enum": ["x", "y"]}), tokenizer)
    first, second = grammar.start(), grammar.start()
    first.begin()
    while not first.finished:
        first.take(first.closing(first.allowed()))
    assert not second.finished


def test_a_keyword_that_would_not_be_kept_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="no answer can be written"):
        Grammar.compile(closed(a={"type": "array", "uniqueItems": True, "items": {"type": "string"}}), tokenizer)


def test_a_schema_whose_shortest_answer_is_endless_is_refused(tokenizer: Any) -> None:
    long = {"type": "array", "items": {"type": "array", "items": {"enum": ["word"]}, "minItems": 90}, "minItems": 90}
    with pytest.raises(ConfigError, match="shortest answer"):
        Grammar.compile(closed(a=long), tokenizer)


def test_pieces_add_up_to_the_text(tokenizer: Any) -> None:
    grammar = Grammar.compile(closed(a={"type": "string"}), tokenizer)
    ids = tokenizer.encode('{"a": "größe 🙂"}', add_special_tokens=False)
    assert b"".join(grammar.pieces(tuple(ids))).decode() == '{"a": "größe 🙂"}'


def test_numbers_that_no_program_can_hold_cannot_be_written(tokenizer: Any) -> None:
    grammar = Grammar.compile(closed(price={"type": "number"}), tokenizer)
    assert spell(grammar, tokenizer, '{"price": -12.50}')
    assert not spell(grammar, tokenizer, '{"price": 165E11030}')


def test_only_numbers_without_a_bound_are_bounded() -> None:
    schema = closed(
        a={"type": ["number", "null"]}, b={"type": "number", "exclusiveMinimum": 3}, c={"const": {"type": "number"}}
    )
    found = with_number_bounds(schema)["properties"]
    assert found["a"] == {"type": ["number", "null"], "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
    assert found["b"] == {"type": "number", "exclusiveMinimum": 3, "maximum": MAX_NUMBER}
    assert found["c"] == {"const": {"type": "number"}}


@pytest.mark.parametrize("begun", ["-", "12", "1.5", "-0."])
@pytest.mark.parametrize("place", ["%s", '{"a": %s, "b": ', '{"a": 1, "b": %s'])
def test_a_number_that_is_cut_is_closed_at_once(tokenizer: Any, place: str, begun: str) -> None:
    kind = {"type": "integer"} if begun.isdigit() else {"type": "number"}
    schema = kind if place == "%s" else closed(a=kind | {"minimum": -9}, b=kind)
    text = place.partition("%s")[0] + begun
    follower = Grammar.compile(schema, tokenizer).start()
    done = tokenizer.decode(follower.begin())
    while len(done) < len(text):
        token = tokenizer.encode(text[len(done)], add_special_tokens=False)[0]
        done += tokenizer.decode([token, *follower.take(token)])
    for _ in range(40):
        token = follower.closing(follower.allowed())
        if token == follower.end or follower.finished:
            break
        done += tokenizer.decode([token, *follower.take(token)])
        if follower.finished:
            break
    jsonschema.validate(json.loads(done), schema)
    assert len(done) <= len(text) + 14


def test_grammars_are_kept_by_their_schema_and_the_oldest_goes(lively: tuple[Any, Any]) -> None:
    kept = GrammarCache(lively[1], max_grammars=2)

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
