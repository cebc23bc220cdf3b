"""Infer a JSON schema that allows what solved rows hold and nothing else, for a task file that has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from smallfirst.base.errors import ConfigError

ENUM_MIN_VALUES = 50
"""Fewest texts that a place must have held before a few that repeat are taken for all there are."""
ENUM_MAX_DISTINCT = 12
"""Most different texts of a closed list."""
ENUM_MIN_REPEATS = 5
"""Fewest times that each was seen. The chance that the next one is new is about the share of those seen once (Good
1953), here none."""
ENUM_MAX_CHARACTERS = 60
"""Longest text of a closed list."""

_MOST_DEPTH = 64  # far more than check_schema takes; keeps the walk itself from running out of stack
_SHOWN = 20


def infer_schema(values: Sequence[Any]) -> dict[str, Any]:
    """Return a closed schema that all `values` follow. Raise ConfigError if they are no objects with fields."""
    wrong = [(n, value) for n, value in enumerate(values, 1) if not isinstance(value, dict)]
    if wrong:
        lines = [f"  row {n}: {str(value)[:60]!r} is no object" for n, value in wrong[:_SHOWN]]
        more = [f"  … and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise ConfigError(
            "\n".join(["no schema can be guessed: every answer must be an object of fields", *lines, *more]),
            hint='write answers as {"field": "value"}, or take kind: answer',
        )
    if not any(values):
        raise ConfigError(
            f"no schema can be guessed: none of {len(values)} rows has a field",
            hint="write the schema into the task file",
        )
    return _object(values, 1)


def _node(values: Sequence[Any], depth: int) -> dict[str, Any]:
    if depth > _MOST_DEPTH:
        raise ConfigError(f"no schema can be guessed: an answer is nested more than {_MOST_DEPTH} deep")
    objects = [value for value in values if isinstance(value, dict)]
    lists = [value for value in values if isinstance(value, list)]
    texts = [value for value in values if isinstance(value, str)]
    kinds = _scalar_types(values)
    options: list[dict[str, Any]] = []
    if texts and (listed := _few(texts)) and set(kinds) <= {"string", "null"}:
        options.append({"enum": [*listed, None] if "null" in kinds else listed})
    elif kinds:
        options.append({"type": kinds[0] if len(kinds) == 1 else kinds})
    if lists:
        items = [item for value in lists for item in value]
        options.append({"type": "array", "items": _node(items, depth + 1) if items else {"type": "string"}})
    if objects:
        options.append(_object(objects, depth + 1))
    return options[0] if len(options) == 1 else {"anyOf": options}


def _object(values: Sequence[dict[str, Any]], depth: int) -> dict[str, Any]:
    by_name: dict[str, list[Any]] = {}
    for value in values:
        for name, held in value.items():
            by_name.setdefault(name, []).append(held)
    return {
        "type": "object",
        "properties": {name: _node(held, depth) for name, held in by_name.items()},
        "required": [name for name, held in by_name.items() if len(held) == len(values)],
        "additionalProperties": False,
    }


def _scalar_types(values: Sequence[Any]) -> list[str]:
    """Return the scalar types of `values`; whole numbers are numbers where others are not whole."""
    seen = {type(value) for value in values}
    number = ["number"] if float in seen else ["integer"] if int in seen else []
    named = {str: "string", bool: "boolean", type(None): "null"}
    return [named[str]] * (str in seen) + number + [named[kind] for kind in (bool, type(None)) if kind in seen]


def _few(texts: Sequence[str]) -> list[str]:
    """Return the different texts, most frequent first, if they look like a closed list; else empty."""
    counts = Counter(texts)
    closed = (
        len(texts) >= ENUM_MIN_VALUES
        and len(counts) <= ENUM_MAX_DISTINCT
        and min(counts.values()) >= ENUM_MIN_REPEATS
        and max(map(len, counts)) <= ENUM_MAX_CHARACTERS
    )
    return [text for text, _ in counts.most_common()] if closed else []
