"""The first JSON object in what a model wrote, validated, in one canonical form; all work is bounded."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import referencing

from smallfirst.tasks.json.regex_safety import MAX_MATCHED_CHARACTERS
from smallfirst.tasks.json.schema import SEPARATORS, alternatives
from smallfirst.tasks.json.schema_limits import Schema, allowed_types

MAX_CHARACTERS = 200_000
"""Longest text that is looked through."""
MAX_NESTING = 32
"""Most objects and lists inside one another."""
_MOST_BROKEN = 1_000
"""Opening brackets without an object behind them after which the search ends: each costs a pass over the text."""
_FORMATS = ("date", "email", "ipv4", "ipv6", "uuid")
"""Formats that are checked without further packages; the others are kept by the grammar alone."""


class AnswerParser:
    """Parse answers under one schema, which must have passed `check_schema`."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._validator = _Validator(
            schema,
            registry=referencing.Registry(),  # knows nothing and fetches nothing
            format_checker=jsonschema.FormatChecker(_FORMATS),
        )

    def read(self, text: str) -> str | None:
        """Return the first object that the schema allows as JSON, fields in schema order; None without one."""
        if len(text) > MAX_CHARACTERS:
            return None
        try:
            for value in _objects(text):
                if self._validator.is_valid(value):
                    answer = json.dumps(self._ordered(value, self._schema), ensure_ascii=False, separators=SEPARATORS)
                    answer.encode()  # half a surrogate pair is no text
                    return answer
        except (ValueError, RecursionError):
            return None
        return None

    def keeps(self, text: str) -> bool:
        """Return True if the whole text is JSON that the schema allows, with nothing before or after it."""
        if len(text) > MAX_CHARACTERS:
            return False
        try:
            return bool(self._validator.is_valid(json.loads(text, parse_constant=_finite, parse_float=_finite)))
        except (ValueError, RecursionError):
            return False

    def _ordered(self, value: Any, node: Schema) -> Any:
        """Return `value` with the fields of its objects in schema order and whole numbers without a point."""
        options = [option for option in alternatives(self._schema, node) if _fits(option, value)]
        if isinstance(value, dict | list) and len(options) > 1:
            options = [option for option in options if self._validator.evolve(schema=option).is_valid(value)]
        if isinstance(value, dict):
            fields = options[0].get("properties", {})
            other = options[0].get("additionalProperties", {})
            names = [*(name for name in fields if name in value), *(name for name in value if name not in fields)]
            return {name: self._ordered(value[name], fields.get(name, other)) for name in names}
        if isinstance(value, list):
            return [self._ordered(item, options[0]["items"]) for item in value]
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
            if _nested(value) > MAX_NESTING:
                raise ValueError("nested too deep")
            yield value
        start = text.find("{", end)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is named twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


# strict=False: models write line ends into texts as they are.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite, strict=False)


def _nested(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            held
            for one in level
            for held in (one.values() if isinstance(one, dict) else one)
            if isinstance(held, dict | list)
        ]
    return depth


def _fits(option: Schema, value: Any) -> bool:
    kinds = allowed_types(option)
    if isinstance(value, dict | list):
        return ("object" if isinstance(value, dict) else "array") in kinds
    return not isinstance(value, float) or "number" in kinds or "integer" in kinds


def _matches(_: Any, pattern: str, value: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    """Yield an error if the pattern does not match; a text longer than MAX_MATCHED_CHARACTERS does not."""
    if isinstance(value, str) and (len(value) > MAX_MATCHED_CHARACTERS or not re.search(pattern, value)):
        yield jsonschema.ValidationError(f"does not match {pattern}")


_Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _matches})
