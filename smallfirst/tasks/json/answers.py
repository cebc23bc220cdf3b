"""The first JSON object in what a model wrote, validated, in one canonical form; all work is bounded."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any

from smallfirst.tasks.json.schema import SEPARATORS, alternatives
from smallfirst.tasks.json.schema_limits import Schema, allowed_types
from smallfirst.tasks.json.validation import AnswerCheck, TooManySteps

MAX_CHARACTERS = 200_000
"""Longest text that is looked through."""
MAX_NESTING = 32
"""Most objects and lists inside one another."""
_MOST_BROKEN = 1_000
"""Opening brackets without an object behind them after which the search ends: each costs a pass over the text."""


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
        return len(text) <= MAX_CHARACTERS and keeps_schema(text, AnswerCheck(self._schema), self._schema)

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


def keeps_schema(text: str, check: AnswerCheck, schema: Schema) -> bool:
    """Return True if the whole text is JSON that the check's schema allows. Raise TooManySteps."""
    try:
        return check.is_valid(json.loads(text, parse_constant=_finite, parse_float=_finite), schema)
    except (ValueError, RecursionError):
        return False


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
