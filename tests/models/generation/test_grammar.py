"""A grammar accepts what its schema allows, in canonical spacing, and can end an answer in a few tokens."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from smallfirst.base.errors import ConfigError, ModelError
from smallfirst.models.generation.grammar import MAX_NUMBER, Grammar, with_number_bounds


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
    """True if the grammar accepts exactly this text."""
    state = grammar.start()
    done = tokenizer.decode(state.begin())
    while not state.finished:
        allowed, rest = state.allowed(), text[len(done) :]
        fits = [
            t for t in range(len(allowed)) if allowed[t] and (word := tokenizer.decode([t])) and rest.startswith(word)
        ]
        if not fits:
            return False
        token = max(fits, key=lambda t: len(tokenizer.decode([t])))
        done += tokenizer.decode([token, *state.take(token)])
    return done == text


@pytest.fixture
def tokenizer(tiny_fp32: tuple[Any, Any]) -> Any:
    return tiny_fp32[1]


@pytest.mark.parametrize("name", NASTY)
def test_the_shortest_answer_is_valid(name: str, tokenizer: Any) -> None:
    grammar = Grammar.compile(NASTY[name], tokenizer)
    other, state = grammar.start(), grammar.start()
    tokens = state.begin()
    while not state.finished:
        token = state.closing(state.allowed())
        tokens += [token, *state.take(token)]
    jsonschema.validate(json.loads(tokenizer.decode(tokens)), NASTY[name])
    assert len(tokens) == grammar.closing_tokens
    assert not other.finished  # two answers of one grammar are independent


def test_only_canonical_spacing_and_order_are_accepted(tokenizer: Any) -> None:
    grammar = Grammar.compile(closed(card={"type": "string"}, pin={"type": "integer"}), tokenizer)
    assert spell(grammar, tokenizer, '{"card": "late", "pin": 4}')
    assert not spell(grammar, tokenizer, '{"card":"late","pin":4}')
    assert not spell(grammar, tokenizer, '{"pin": 4, "card": "late"}')
    assert not spell(grammar, tokenizer, '{"card": "late", "pin": "4"}')


def test_a_token_that_is_not_allowed_is_an_error(tokenizer: Any) -> None:
    state = Grammar.compile(closed(a={"type": "null"}), tokenizer).start()
    state.begin()
    with pytest.raises(ModelError, match="left at token"):
        state.take(next(t for t, ok in enumerate(state.allowed()) if not ok))


def test_a_matcher_that_gives_up_is_not_the_end_of_an_answer(tokenizer: Any) -> None:
    state = Grammar.compile(closed(a={"type": "null"}), tokenizer).start()
    state._matcher.consume_token(0)
    assert state._matcher.is_stopped()
    for use in (lambda: state.finished, state.allowed):
        with pytest.raises(ModelError, match="could not be followed"):
            use()


def test_schemas_without_a_usable_grammar_are_refused(tokenizer: Any) -> None:
    unique = {"type": "array", "uniqueItems": True, "items": {"type": "string"}}
    with pytest.raises(ConfigError, match="no answer can be written"):
        Grammar.compile(closed(a=unique), tokenizer)
    long = {"type": "array", "items": {"type": "array", "items": {"enum": ["word"]}, "minItems": 90}, "minItems": 90}
    with pytest.raises(ConfigError, match="shortest answer"):
        Grammar.compile(closed(a=long), tokenizer)


def test_pieces_add_up_to_the_text(tokenizer: Any) -> None:
    grammar = Grammar.compile(closed(a={"type": "string"}), tokenizer)
    ids = tokenizer.encode('{"a": "größe 🙂"}', add_special_tokens=False)
    assert b"".join(grammar.pieces(tuple(ids))).decode() == '{"a": "größe 🙂"}'


def test_numbers_that_no_program_can_hold_are_not_accepted(tokenizer: Any) -> None:
    grammar = Grammar.compile(closed(price={"type": "number"}), tokenizer)
    assert spell(grammar, tokenizer, '{"price": -12.50}')
    assert not spell(grammar, tokenizer, '{"price": 165E11030}')


def test_only_numbers_without_bounds_get_them() -> None:
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
    state = Grammar.compile(schema, tokenizer).start()
    done = tokenizer.decode(state.begin())
    while len(done) < len(text):
        token = tokenizer.encode(text[len(done)], add_special_tokens=False)[0]
        done += tokenizer.decode([token, *state.take(token)])
    for _ in range(40):
        token = state.closing(state.allowed())
        if token == state.end or state.finished:
            break
        done += tokenizer.decode([token, *state.take(token)])
        if state.finished:
            break
    jsonschema.validate(json.loads(done), schema)
    assert len(done) <= len(text) + 14
