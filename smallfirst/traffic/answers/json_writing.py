"""How a model writes JSON: order of keys, spaces, indent, escapes and decimals, found in what it wrote."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from smallfirst.records import Record

_FIRST, _SAMPLE, _KEPT = 10, 300, 3
"""Answers on which all writings are compared, and those on which the best few are."""
_INDENTS = ("", " ", "  ", "   ", "    ", "\t")


class JsonWriting(Record):
    """How values become JSON text. Paths of fields are written as `items[].price`; that of the whole value is empty."""

    keys: dict[str, tuple[str, ...]] = {}
    """Order of the keys of the objects at a path; other keys follow in their own order."""
    decimals: dict[str, int] = {}
    """Number of decimals at a path whose numbers all have as many, as prices do; else the shortest that is exact."""
    indent: str = ""
    """What one level is indented by; empty: all on one line."""
    item_separator: str = ", "
    """Between items on one line."""
    key_separator: str = ": "
    """Between a key and its value."""
    ascii_only: bool = False
    """True if other characters are written as escapes."""

    def write(self, value: Any) -> str:
        """Return `value` as JSON text."""
        return self._write(value, "", "\n")

    def _write(self, value: Any, path: str, line_end: str) -> str:
        if isinstance(value, dict):
            keys, inner = self._ordered(value, path), line_end + self.indent
            held = {key: self._write(value[key], _child(path, key), inner) for key in keys}
            items = [f"{self._scalar(key, '')}{self.key_separator}{text}" for key, text in held.items()]
            return self._joined("{", items, "}", line_end)
        if isinstance(value, list):
            items = [self._write(item, f"{path}[]", line_end + self.indent) for item in value]
            return self._joined("[", items, "]", line_end)
        return self._scalar(value, path)

    def _joined(self, opening: str, items: Sequence[str], closing: str, line_end: str) -> str:
        if not items or not self.indent:
            return opening + self.item_separator.join(items) + closing
        inner = line_end + self.indent
        return opening + inner + f",{inner}".join(items) + line_end + closing

    def _scalar(self, value: Any, path: str) -> str:
        if path in self.decimals and isinstance(value, int | float) and not isinstance(value, bool):
            return f"{value:.{self.decimals[path]}f}"
        return json.dumps(value, ensure_ascii=self.ascii_only)

    def _ordered(self, value: dict[str, Any], path: str) -> list[str]:
        first = [key for key in self.keys.get(path, ()) if key in value]
        return first + [key for key in value if key not in first]


def find_writing(texts: Sequence[str]) -> JsonWriting:
    """Return the writing that gives most of these JSON texts back byte for byte. Raise ValueError if one is no JSON."""
    values = [json.loads(text, parse_float=_Written) for text in texts]
    orders: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    numbers: dict[str, Counter[int]] = defaultdict(Counter)
    for path, value in (found for one in values for found in _walk(one, "")):
        if isinstance(value, dict):
            orders[path][tuple(value)] += 1
        else:
            numbers[path][value.n_decimals if isinstance(value, _Written) else 0] += 1
    common = {path: counts.most_common(1)[0] for path, counts in numbers.items()}
    found = JsonWriting(
        keys={path: _merged(counts) for path, counts in orders.items()},
        # Numbers whose last decimal may be any digit end in 0 one time in ten, where a shortest form drops it.
        decimals={path: n for path, (n, times) in common.items() if n > 0 and times > 0.95 * numbers[path].total()},
    )
    pairs = list(zip(texts, values, strict=True))

    def n_exact(writing: JsonWriting, sample: Sequence[tuple[str, Any]]) -> int:
        return sum(writing.write(value) == text for text, value in sample)

    best = sorted(_writings(found), key=lambda one: -n_exact(one, pairs[:_FIRST]))[:_KEPT]
    return max(best, key=lambda one: n_exact(one, pairs[:_SAMPLE]))


def _writings(found: JsonWriting) -> Iterator[JsonWriting]:
    layouts = [(indent, ", ", ": ") for indent in _INDENTS[1:]]
    numbers = ({}, found.decimals) if found.decimals else ({},)
    layouts += [("", item, key) for item, key in itertools.product((", ", ","), (": ", ":"))]
    for decimals, ascii_only, (indent, item, key) in itertools.product(numbers, (False, True), layouts):
        yield found.model_copy(
            update={
                "decimals": decimals,
                "ascii_only": ascii_only,
                "indent": indent,
                "item_separator": item,
                "key_separator": key,
            }
        )


class _Written(float):
    """A number that remembers how many decimals it was written with; -1 with an exponent."""

    n_decimals: int

    def __new__(cls, text: str) -> _Written:
        number = super().__new__(cls, text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is too large")
        number.n_decimals = -1 if "e" in text.lower() else len(text.partition(".")[2])
        return number


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every object and number in a value with its path."""
    if isinstance(value, dict):
        yield path, value
        for key, held in value.items():
            yield from _walk(held, _child(path, key))
    elif isinstance(value, list):
        for held in value:
            yield from _walk(held, f"{path}[]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _child(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _merged(orders: Counter[tuple[str, ...]]) -> tuple[str, ...]:
    """Return all keys in the most frequent order; a key that it lacks stands behind the one that precedes it."""
    merged: list[str] = []
    for order, _ in orders.most_common():
        place = 0
        for key in order:
            if key not in merged:
                merged.insert(place, key)
            place = merged.index(key) + 1
    return tuple(merged)
