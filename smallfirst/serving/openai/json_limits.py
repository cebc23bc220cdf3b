"""Limits of a client's JSON: depth, keys, elements, and schemas.

They apply to the parsed JSON, before anything is built from it; each value is visited once, without recursion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pydantic_core

from smallfirst.errors import ConfigError
from smallfirst.serving.openai.errors import ApiError

MAX_DEPTH = 64
"""Objects and lists inside one another."""
MAX_KEYS = 1_024
"""Names in one object."""
MAX_KEY_CHARACTERS = 256
MAX_ELEMENTS = 50_000
"""Values in all."""
MAX_INTEGER_BITS = 64
"""Bits of an integer; nothing here counts further."""
MAX_SCHEMA_OBJECTS = 1_000
"""Objects in a schema: checking one against the rules of JSON Schema takes a quarter of a millisecond."""
MAX_SCHEMA_BYTES = 32 * 1024
SCHEMA_PLACE = "response_format.json_schema.schema"

_Place = tuple[Any, ...]
"""(parent place, key or index), or empty for the root."""


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Return the body as a JSON object. Raise ApiError 400 if it is none, or larger than the limits of `check_json`."""
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    check_json(value)
    return value


def check_json(value: Any) -> int:
    """Return the number of objects in parsed JSON. Raise ApiError 400, naming the place, beyond the limits."""
    waiting: list[tuple[Any, int, _Place]] = [([value], 0, ())]
    n_elements = n_objects = 0
    while waiting:
        held, depth, place = waiting.pop()
        if depth > MAX_DEPTH:
            raise _too_large(place, f"nested more than {MAX_DEPTH} deep")
        n_elements += len(held)
        if n_elements > MAX_ELEMENTS + 1:
            raise _too_large((), f"more than {MAX_ELEMENTS:,} values in all")
        if isinstance(held, dict):
            n_objects += 1
            _check_names(held, place)
        for key, inner in held.items() if isinstance(held, dict) else enumerate(held):
            kind = type(inner)
            if kind is dict or kind is list:
                waiting.append((inner, depth + 1, (place, key) if depth else ()))
            elif kind is int and inner.bit_length() > MAX_INTEGER_BITS:
                raise _too_large((place, key), f"an integer of more than {MAX_INTEGER_BITS} bits")
            elif kind is float and not math.isfinite(inner):
                raise _too_large((place, key), "a number that is too large")
    return n_objects


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise ApiError 400, with everything wrong in it, for a schema that no answer can be held to.

    It takes up to a quarter of a second, so call it in a thread; results of recent schemas are cached.
    """
    n_objects = check_json(schema)
    written = pydantic_core.to_json(schema)
    if len(written) > MAX_SCHEMA_BYTES:
        problems = f"{len(written):,} bytes as JSON; at most {MAX_SCHEMA_BYTES:,} are allowed"
    elif n_objects > MAX_SCHEMA_OBJECTS:
        problems = f"{n_objects:,} objects; at most {MAX_SCHEMA_OBJECTS:,} are allowed"
    else:
        problems = _schema_problems(written)
    if problems:
        raise ApiError(400, f"{SCHEMA_PLACE}: {problems}.", param=SCHEMA_PLACE, code="invalid_schema")


@lru_cache(maxsize=256)
def _schema_problems(schema: bytes) -> str:
    """Return what is wrong with a schema in one line of at most 2 KB; empty if it is valid."""
    # Imported here since it loads jsonschema, which few servers need.
    from smallfirst.tasks.json.schema import check_schema as check

    try:
        check(pydantic_core.from_json(schema))
    except ConfigError as error:
        lines = [line.strip() for line in str(error.args[0]).splitlines()[1:]]
        return "; ".join(lines)[:2_000]
    return ""


def _check_names(held: Mapping[str, Any], place: _Place) -> None:
    if len(held) > MAX_KEYS:
        raise _too_large(place, f"more than {MAX_KEYS:,} names in one object")
    if max(map(len, held), default=0) > MAX_KEY_CHARACTERS:
        raise _too_large(place, f"a name of more than {MAX_KEY_CHARACTERS} characters")


def _too_large(place: _Place, rule: str) -> ApiError:
    where = _shown(place)
    return ApiError(400, f"{where or 'The body'}: {rule}.", param=where or None, code="json_too_large")


def _shown(place: _Place) -> str:
    keys: list[Any] = []
    while place:
        place, key = place
        keys.append(key)
    parts = [f"[{key}]" if isinstance(key, int) else f".{key[:64]}" for key in reversed(keys[-8:])]
    return "".join(parts).removeprefix(".")
