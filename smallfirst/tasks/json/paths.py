"""Where the fields of an answer are (`slots.artist`, `items[].price`): their paths, values, and character spans."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from smallfirst.tasks.metrics.value_matching import Normalizer, normalize_value

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_PLAIN_NAME = re.compile(r'(?!\s)[^.\[\]"\\\x00-\x1f]+(?<!\s)')


def field_path(path: str, name: str, *, in_list: bool = False) -> str:
    """Return the path of field `name` of the object at `path`; a name with special characters is quoted as in JSON."""
    written = name if _PLAIN_NAME.fullmatch(name) else json.dumps(name, ensure_ascii=False)
    return f"{path}[].{written}" if in_list else f"{path}.{written}" if path else written


def list_items_path(path: str, *, in_list: bool = False) -> str:
    """Return the path of the items of the list at `path`: its own, but for a list within a list."""
    return f"{path}[]" if in_list else path


def flatten(answer: Any) -> dict[str, list[Any]]:
    """Return the values of a parsed answer by path, in order, without null, empty lists and empty objects."""
    found: dict[str, list[Any]] = {}
    for path, value in _leaves(answer, "", False):
        found.setdefault(path, []).append(value)
    return found


def comparison_key(answer: Any, normalise: Mapping[str, Normalizer]) -> Hashable:
    """Return a key equal for answers of equal content, lists without order, values as `normalise` says by path."""
    return _comparable(answer, normalise, "", False)


def value_spans(canonical: str) -> dict[str, list[tuple[int, int]]]:
    """Return start and end (excluded) of every value in a canonical answer, by path; without a text's quotes."""
    found: dict[str, list[tuple[int, int]]] = {}
    around: list[tuple[str, str, bool]] = []  # bracket, path and whether that is in a list, of what is open
    path, in_list, is_name = "", False, False
    for match in _TOKEN.finditer(canonical):
        token = match[0]
        if token == "{":
            around.append((token, path, in_list))
            is_name = True
        elif token == "[":
            path, in_list = list_items_path(path, in_list=in_list), True
            around.append((token, path, in_list))
        elif token in ("}", "]"):
            around.pop()
        elif token == ",":
            bracket, path, in_list = around[-1]
            is_name = bracket == "{"
        elif token == ":":
            is_name = False
        elif is_name:
            _, path, in_list = around[-1]
            path, in_list = field_path(path, json.loads(token), in_list=in_list), False
        else:
            quotes = int(len(token) > 2 and token[0] == '"')
            found.setdefault(path, []).append((match.start() + quotes, match.end() - quotes))
    return found


def omission_spans(canonical: str, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return, for each of the top-level fields `names` left out, start and end of what was written in its place.

    That is the name of the next field, in the order of `names`, quotes included, or the closing bracket.
    """
    spans, depth, is_name = dict[str, tuple[int, int]](), 0, False
    place: tuple[int, int] | None = None
    for match in _TOKEN.finditer(canonical):
        token = match[0]
        if token == "}" and depth == 1:
            place = match.span()
        if is_name and token[0] == '"':
            spans[json.loads(token)] = match.span()
        depth += (token in "{[") - (token in "}]")
        is_name = depth == 1 and token in "{,"
    found = {}
    for name in reversed(names):
        place = spans.get(name, place)
        if name not in spans and place is not None:
            found[name] = place
    return found


def _leaves(value: Any, path: str, in_list: bool) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, held in value.items():
            yield from _leaves(held, field_path(path, name, in_list=in_list), False)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, list_items_path(path, in_list=in_list), True)
    elif value is not None:
        yield path, value


def _comparable(value: Any, normalise: Mapping[str, Normalizer], path: str, in_list: bool) -> Hashable:
    if isinstance(value, dict):
        inside = {
            name: said
            for name, held in value.items()
            if (said := _comparable(held, normalise, field_path(path, name, in_list=in_list), False)) is not None
        }
        return ("object", frozenset(inside.items())) if inside else None
    if isinstance(value, list):
        items_path = list_items_path(path, in_list=in_list)
        items = Counter(_comparable(item, normalise, items_path, True) for item in value)
        del items[None]
        return ("list", frozenset(items.items())) if items else None
    return None if value is None else normalize_value(value, normalise.get(path, "exact"))
