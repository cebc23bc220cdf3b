"""A JSON answer beside the right one, field by field, and which fields differ.

Values are compared as a reader would: case, outer spaces and `12` against `12.0` make no difference. The task's own
normalisers (dates, money) decide what counts; here a field may be marked as different that the task let pass.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from smallfirst.evaluation.results import EvaluatedRow

State = Literal["same", "wrong", "missing", "invented"]


class FieldPair(NamedTuple):
    """One field of the right answer and of the one given."""

    path: str
    """Where the field is: `guest.name`, `items[].price`."""
    gold: str
    """Its right value as text; empty if it is not there."""
    said: str
    """The value given; empty if there is none."""
    state: State
    """`missing`: there, but not said; `invented`: said, but not there."""


def side_by_side(row: EvaluatedRow) -> tuple[FieldPair, ...]:
    """Every field of the right answer that is nearest to the given one, and of the given one, in their order."""
    options = [_pairs(gold, row.answer) for gold in (row.gold, *row.also)]
    return min(options, key=lambda pairs: sum(pair.state != "same" for pair in pairs))


def differing(row: EvaluatedRow, path: str = "") -> tuple[FieldPair, ...]:
    """The fields that are not the same; with `path` only those at it or inside it."""
    return tuple(pair for pair in side_by_side(row) if pair.state != "same" and (not path or within(pair.path, path)))


def between(gold: str, said: str) -> tuple[FieldPair, ...]:
    """The fields in which two JSON answers differ."""
    return tuple(pair for pair in _pairs(gold, said) if pair.state != "same")


def within(path: str, part: str) -> bool:
    """True if `path` is the field `part` or lies inside it: a task may count an object or a list as one."""
    inner, outer = same_path(path), same_path(part)
    return inner == outer or inner.startswith(f"{outer}.")


def same_path(path: str) -> str:
    """A path with every list index left out, so that `items[0].price`, `items.0.price` and `items[].price` are one."""
    parts = [part for part in path.replace("[", ".[").split(".") if part]
    kept = [part for part in parts if not part.strip("[]*").isdigit() and part not in ("[]", "[*]", "*", "$")]
    return ".".join(kept)


@lru_cache(maxsize=20_000)
def _pairs(gold: str, said: str | None) -> tuple[FieldPair, ...]:
    there, given = _fields(gold), _fields(said)
    return tuple(_pair(path, there.get(path, ()), given.get(path, ())) for path in dict.fromkeys([*there, *given]))


def _pair(path: str, gold: Sequence[str], said: Sequence[str]) -> FieldPair:
    if Counter(map(_fold, gold)) == Counter(map(_fold, said)):
        state: State = "same"
    else:
        state = "wrong" if gold and said else "missing" if gold else "invented"
    return FieldPair(path, ", ".join(gold), ", ".join(said), state)


def _fields(text: str | None) -> dict[str, tuple[str, ...]]:
    """Values by path in the order of the text; null, empty texts and empty lists count as not there."""
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return {"(not JSON)": (text,)} if text else {}
    found: dict[str, list[str]] = {}
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            inner = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
            waiting.extend(reversed(inner))
        elif isinstance(value, list):
            waiting.extend(reversed([(f"{path}[]", item) for item in value]))
        elif value is not None and value != "":
            found.setdefault(path or "(value)", []).append(value if isinstance(value, str) else json.dumps(value))
    return {path: tuple(values) for path, values in found.items()}


def _fold(value: str) -> str:
    folded = " ".join(value.casefold().split())
    try:
        return repr(float(folded))
    except ValueError:
        return folded
