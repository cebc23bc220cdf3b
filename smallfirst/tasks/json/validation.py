"""Whether a parsed answer keeps to a schema, in a bounded number of steps.

A value is judged once for each definition that is referred to, so a recursive choice costs no more than any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from jsonschema import FormatChecker  # type: ignore[import-untyped]

from smallfirst.errors import BadAnswer
from smallfirst.tasks.json.patterns import automaton
from smallfirst.tasks.json.schema_limits import (
    ANNOTATIONS,
    CHOICES,
    DEFINITIONS,
    KEYWORDS,
    SCALARS,
    Schema,
    allowed_types,
    allowed_values,
    json_type,
    resolve_reference,
)

MAX_STEPS = 500_000
"""Steps after which an answer is given up: half a second at most."""
_REMEMBERED = 10
"""Steps that a remembered judgement counts for: freeing very many of them at once would hold the interpreter."""
_FORMATS = FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))
"""Formats that are checked without further packages; the others are kept by the grammar alone."""


class TooManySteps(BadAnswer):
    """An answer that takes too long to check."""


def keeps_format(text: str, name: str) -> bool:
    """Return True if the text is of a format, or of one that only the grammar can keep."""
    return bool(_FORMATS.conforms(text, name))


class AnswerCheck:
    """The check of one answer, which must not change meanwhile, against nodes of one schema."""

    def __init__(self, schema: Schema, keeps_format: Callable[[str, str], bool] = keeps_format) -> None:
        self._schema, self._keeps_format = schema, keeps_format
        self._known: dict[tuple[str, int], bool] = {}
        self._allowed: dict[int, set[tuple[bool, Any]]] = {}
        self._steps_left = MAX_STEPS

    def spend(self, steps: int) -> None:
        """Raise TooManySteps once all steps are spent."""
        self._steps_left -= steps
        if self._steps_left < 0:
            raise TooManySteps(f"the answer takes more than {MAX_STEPS:,} steps to check against its schema")

    def is_valid(self, value: Any, node: Schema) -> bool:
        """Return True if the node allows the value. Raise TooManySteps, RecursionError."""
        self.spend(1)
        if "$ref" in node and not self._keeps_reference(value, node["$ref"]):
            return False
        if any(not self._keeps_choice(value, node[key], key) for key in CHOICES if key in node):
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
                few, many = node.get("minItems", 0), node.get("maxItems", len(value))
                items = node.get("items")
                every = not isinstance(items, dict) or all(self.is_valid(one, items) for one in value)
                return bool(few <= len(value) <= many and every)
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
        if id(node) not in self._allowed:
            values = allowed_values(node)
            self.spend(len(values))
            self._allowed[id(node)] = {(isinstance(one, bool), one) for one in values}  # True == 1 in Python alone
        return not isinstance(value, dict | list) and (isinstance(value, bool), value) in self._allowed[id(node)]

    def _keeps_text(self, text: str, node: Schema) -> bool:
        if not node.get("minLength", 0) <= len(text) <= node.get("maxLength", len(text)):
            return False
        if "pattern" in node:
            pattern = automaton(node["pattern"])
            self.spend(pattern.n_states)  # it may have been made anew
            if not pattern.search(text, self.spend):
                return False
        self.spend(len(text) if "format" in node else 0)
        return "format" not in node or self._keeps_format(text, node["format"])

    def _keeps_object(self, value: dict[str, Any], node: Schema) -> bool:
        fields, required, other = node.get("properties", {}), node.get("required", ()), node.get("additionalProperties")
        self.spend(len(required) + len(value))
        if any(name not in value for name in required):
            return False
        for name, held in value.items():
            inside = fields.get(name, other)
            if inside is False or (isinstance(inside, dict) and not self.is_valid(held, inside)):
                return False
        return True


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


def unsupported_part(node: Any, schema: Schema) -> str:
    """Return the first part of a schema that `AnswerCheck` does not know, as JSON; empty if it knows all."""
    if not isinstance(node, dict):
        return json.dumps(node)
    if "$ref" in node and resolve_reference(schema, node["$ref"]) is None:
        return json.dumps(node["$ref"])
    if unknown := next((key for key in node if key not in KEYWORDS | ANNOTATIONS | {*DEFINITIONS}), None):
        return json.dumps(unknown)
    if any(json_type(value) not in SCALARS for value in allowed_values(node)):
        return json.dumps(allowed_values(node))
    inside = [part for key in ("properties", *DEFINITIONS) for part in node.get(key, {}).values()]
    inside += [part for key in CHOICES for part in node.get(key, ())]
    inside += [node[key] for key in ("items", "additionalProperties") if not isinstance(node.get(key, True), bool)]
    return next((found for part in inside if (found := unsupported_part(part, schema))), "")
