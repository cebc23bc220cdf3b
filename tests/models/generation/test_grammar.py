"""A grammar accepts what its schema allows, in canonical spacing."""

import json
import random
from typing import Any

import jsonschema
import pytest

from smallfirst.models.generation.grammar import MAX_NUMBER, Grammar, with_number_bounds


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


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
    state = grammar.start()
    done = tokenizer.decode(state.forced())
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
def test_whatever_is_drawn_from_it_is_valid(name: str, tokenizer: Any) -> None:
    grammar, draw = Grammar.compile(NASTY[name], tokenizer), random.Random(name)
    for _ in range(3):
        state = grammar.start()  # answers of one grammar are independent
        tokens = state.forced()
        while not state.finished and len(tokens) < 400:
            allowed = state.allowed().nonzero()[0].tolist()
            ends = [t for t in allowed if set(tokenizer.decode([t])) & set('"}]')] if len(tokens) > 30 else []
            token = draw.choice(ends or allowed)
            tokens += [token, *state.take(token)] if token != state.end else []
            if token == state.end:
                break
        if state.finished:
            jsonschema.validate(json.loads(tokenizer.decode(tokens)), NASTY[name])


def test_only_canonical_spacing_and_order_are_accepted(tokenizer: Any) -> None:
    grammar = Grammar.compile(closed(card={"type": "string"}, pin={"type": "integer"}), tokenizer)
    assert spell(grammar, tokenizer, '{"card": "late", "pin": 4}')
    assert not spell(grammar, tokenizer, '{"card":"late","pin":4}')
    assert not spell(grammar, tokenizer, '{"pin": 4, "card": "late"}')
    assert not spell(grammar, tokenizer, '{"card": "late", "pin": "4"}')


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
