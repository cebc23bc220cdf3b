"""A JSON answer beside the right one, field by field; the task's own normalizers may accept what differs here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from smallfirst.evaluation.results import EvaluatedRow
from smallfirst.tasks.json.paths import flatten

State = Literal["same", "wrong", "missing", "invented"]


class FieldPair(NamedTuple):
    """One field of the right answer and of the one given."""

    path: str
    """Path of the field: `guest.name`, `items[].price`."""
    gold: str
    """Its right value as text; empty if the field should be absent."""
    said: str
    """The value given; empty if there is none."""
    state: State
    """`missing`: expected but not given; `invented`: given but not expected."""


def compare_fields(row: EvaluatedRow) -> tuple[FieldPair, ...]:
    """Return every field of the accepted answer nearest to the given one, and of the given one, in their order."""
    options = [_pairs(gold, row.answer) for gold in (row.gold, *row.also)]
    return min(options, key=lambda pairs: sum(pair.state != "same" for pair in pairs))


def differing_fields(row: EvaluatedRow, path: str = "") -> tuple[FieldPair, ...]:
    """Return the fields that differ; with `path` only those at it or inside it."""
    return tuple(
        pair for pair in compare_fields(row) if pair.state != "same" and (not path or is_within(pair.path, path))
    )


def differences_between(gold: str, said: str) -> tuple[FieldPair, ...]:
    """Return the fields in which two JSON answers differ."""
    return tuple(pair for pair in _pairs(gold, said) if pair.state != "same")


def is_within(path: str, part: str) -> bool:
    """Return whether `path` is the field `part` or lies inside it: a task may count an object as one field."""
    return path == part or path.startswith((f"{part}.", f"{part}["))


@lru_cache(maxsize=20_000)
def _pairs(gold: str, said: str | None) -> tuple[FieldPair, ...]:
    expected, given = _fields(gold), _fields(said)
    return tuple(
        _pair(path, expected.get(path, ()), given.get(path, ())) for path in dict.fromkeys([*expected, *given])
    )


def _pair(path: str, gold: Sequence[str], said: Sequence[str]) -> FieldPair:
    if Counter(map(_fold, gold)) == Counter(map(_fold, said)):
        state: State = "same"
    else:
        state = "wrong" if gold and said else "missing" if gold else "invented"
    return FieldPair(path, ", ".join(gold), ", ".join(said), state)


def _fields(text: str | None) -> dict[str, tuple[str, ...]]:
    try:
        answer = json.loads(text or "")
    except (ValueError, RecursionError):
        return {"(not JSON)": (text,)} if text else {}
    return {path or "(value)": tuple(map(_text, values)) for path, values in flatten(answer).items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _fold(value: str) -> str:
    folded = " ".join(value.casefold().split())
    try:
        return repr(float(folded))
    except ValueError:
        return folded
