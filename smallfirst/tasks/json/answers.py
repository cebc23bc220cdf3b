"""Answers under a schema: the first JSON object in what a model wrote, validated, in one canonical form.

All work is bounded: a check takes a limited number of steps, and a value is judged once for each definition that is
referred to, so a recursive choice costs no more than any other.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from smallfirst.base.errors import BadAnswer
from smallfirst.data.conversations import finite
from smallfirst.tasks.json.schema import (
    CHOICES,
    SEPARATORS,
    Schema,
    allowed_types,
    allowed_values,
    alternatives,
    json_type,
    keeps_text,
    resolve_reference,
)

MAX_CHARACTERS = 200_000
"""Longest text that is looked through."""
MAX_STEPS = 500_000
"""Steps after which an answer is given up: half a second at most."""
_MOST_BROKEN = 1_000
"""Opening brackets without an object behind them after which the search ends: each costs a pass over the text."""
_REMEMBERED = 10
"""Steps that a remembered judgement counts for: freeing very many of them at once would hold the interpreter."""


class TooManySteps(BadAnswer):
    """An answer that takes too long to check."""


class AnswerCheck:
    """The check of one answer, which must not change meanwhile, against nodes of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._known: dict[tuple[str, int], bool] = {}
        self._allowed: dict[int, set[tuple[bool, Any]]] = {}
        self._steps_left = MAX_STEPS

    def spend(self, steps: int) -> None:
        """Raise TooManySteps once all steps are spent."""
        self._steps_left -= steps
        if self._steps_left < 0:
            raise TooManySteps(f"the answer takes more than {MAX_STEPS:,} steps to check against its schema")

    def is_valid(self, value: Any, node: Any) -> bool:
        """Return True if the node allows the value. Raise TooManySteps, RecursionError."""
        self.spend(1)
        if not isinstance(node, Mapping):
            return node is not False
        if "$ref" in node and not self._keeps_reference(value, node["$ref"]):
            return False
        if any(not self._keeps_choice(value, node[choice], choice) for choice in CHOICES if choice in node):
            return False
        if ("enum" in node or "const" in node) and not self._is_one_of(value, node):
            return False
        if "type" in node and not _is_of_type(value, allowed_types(node)):
            return False
        match value:
            case str():
                return self._keeps_text(value, node)
            case bool() | None:
                return True
            case int() | float():
                return _keeps_number(value, node)
            case list():
                few, many, items = node.get("minItems", 0), node.get("maxItems", len(value)), node.get("items", True)
                return bool(few <= len(value) <= many) and all(self.is_valid(one, items) for one in value)
        return self._keeps_object(value, node)

    def _keeps_reference(self, value: Any, reference: str) -> bool:
        place = reference, id(value)
        if place not in self._known:
            self.spend(_REMEMBERED)
            self._known[place] = self.is_valid(value, resolve_reference(self._schema, reference))
        return self._known[place]

    def _keeps_choice(self, value: Any, options: list[Schema], choice: str) -> bool:
        fitting = (self.is_valid(value, option) for option in options)
        return sum(fitting) == 1 if choice == "oneOf" else any(fitting) if choice == "anyOf" else all(fitting)

    def _is_one_of(self, value: Any, node: Schema) -> bool:
        if isinstance(value, dict | list):
            return value in allowed_values(node)
        if id(node) not in self._allowed:
            values = [one for one in allowed_values(node) if not isinstance(one, dict | list)]
            self.spend(len(values))
            self._allowed[id(node)] = {(isinstance(one, bool), one) for one in values}  # True == 1 in Python alone
        return (isinstance(value, bool), value) in self._allowed[id(node)]

    def _keeps_text(self, text: str, node: Schema) -> bool:
        if not node.get("minLength", 0) <= len(text) <= node.get("maxLength", len(text)):
            return False
        if "pattern" not in node and "format" not in node:
            return True
        self.spend(10 * (1 + len(text)))
        return keeps_text(text, node)

    def _keeps_object(self, value: dict[str, Any], node: Schema) -> bool:
        fields, required = node.get("properties", {}), node.get("required", ())
        self.spend(len(required) + len(value))
        other = node.get("additionalProperties", True)
        return all(name in value for name in required) and all(
            self.is_valid(held, fields.get(name, other)) for name, held in value.items()
        )


def _is_of_type(value: Any, kinds: tuple[str, ...]) -> bool:
    kind = json_type(value)
    is_whole = kind == "integer" or (kind == "number" and value.is_integer())
    return kind in kinds or (is_whole and ("integer" in kinds or "number" in kinds))


def _keeps_number(value: float, node: Schema) -> bool:
    step = node.get("multipleOf")
    return (
        node.get("minimum", value) <= value <= node.get("maximum", value)
        and ("exclusiveMinimum" not in node or value > node["exclusiveMinimum"])
        and ("exclusiveMaximum" not in node or value < node["exclusiveMaximum"])
        and (step is None or Fraction(str(value)) % Fraction(str(step)) == 0)  # as written: 0.3 is a multiple of 0.1
    )


class AnswerParser:
    """Parse answers under one schema, which must have passed `check_schema`."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def read(self, text: str) -> str | None:
        """Return the first object that the schema allows as JSON, fields in schema order; None without one."""
        if len(text) > MAX_CHARACTERS:
            return None
        check = AnswerCheck(self._schema)
        try:
            held = []  # the check tells values by their identity
            for value in _objects(text):
                held.append(value)
                if check.is_valid(value, self._schema):
                    ordered = self._ordered(value, self._schema, check)
                    answer = json.dumps(ordered, ensure_ascii=False, separators=SEPARATORS)
                    answer.encode()  # half a surrogate pair is no text
                    return answer
        except (ValueError, RecursionError, TooManySteps):
            return None
        return None

    def keeps(self, text: str) -> bool:
        """Return True if the text is JSON that the schema allows, with nothing around it. Raise TooManySteps."""
        if len(text) > MAX_CHARACTERS:
            return False
        try:
            value = json.loads(text, parse_constant=finite, parse_float=finite)
            return AnswerCheck(self._schema).is_valid(value, self._schema)
        except (ValueError, RecursionError):
            return False

    def _ordered(self, value: Any, node: Schema, check: AnswerCheck) -> Any:
        """Return `value` with the fields of its objects in schema order and whole numbers without a point."""
        offered = alternatives(self._schema, node)
        check.spend(len(offered))
        options = [option for option in offered if _fits(option, value)]
        if isinstance(value, dict | list) and len(options) > 1:
            options = [option for option in options if check.is_valid(value, option)]
        if isinstance(value, dict):
            fields = options[0].get("properties", {})
            other = options[0].get("additionalProperties", {})
            names = [*(name for name in fields if name in value), *(name for name in value if name not in fields)]
            return {name: self._ordered(value[name], fields.get(name, other), check) for name in names}
        if isinstance(value, list):
            return [self._ordered(item, options[0]["items"], check) for item in value]
        if isinstance(value, float) and not any("number" in allowed_types(option) for option in options):
            return int(value)
        return value


@functools.lru_cache(maxsize=64)
def answer_parser(schema_json: str) -> AnswerParser:
    """Return the parser of a schema written as JSON, made once."""
    return AnswerParser(json.loads(schema_json))


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield every outermost object in `text`, broken or not. Raise ValueError on hostile ones."""
    start, n_broken = text.find("{"), 0
    while start >= 0 and n_broken < _MOST_BROKEN:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            if error.msg.startswith(("Unterminated string", "Invalid \\")):
                return  # what follows is inside a text
            # Up to here it was an object, broken now: one inside it is not what was meant.
            end, n_broken = max(error.pos, start + 1), n_broken + 1
        else:
            yield value
        start = text.find("{", end)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is named twice")
    return found


# strict=False: models write line ends into texts as they are.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=finite, parse_constant=finite, strict=False)


def _fits(option: Schema, value: Any) -> bool:
    kinds = allowed_types(option)
    if isinstance(value, dict | list):
        return ("object" if isinstance(value, dict) else "array") in kinds
    return not isinstance(value, float) or "number" in kinds or "integer" in kinds
