"""The fields of an answer (`slots.artist`, `items[].price`): paths, values, character spans, and their metrics.

Values are counted as multisets by field path, five counts a row.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from smallfirst.base.stats.intervals import Estimate, bootstrap_share, wilson
from smallfirst.tasks.task import PartCounts, ScoredAnswer
from smallfirst.tasks.value_matching import Normalizer, normalize_value

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


def numbered(path: str, n: int) -> str:
    """Return the path of the value `n`, from 0, of those of a list's field: `tags[1]`, `items[1].price`."""
    return path.replace("[]", f"[{n}]", 1) if "[]" in path else f"{path}[{n}]"


def map_values(answer: Any, make: Callable[[str, Any], Any]) -> Any:
    """Return a parsed answer with what `make` says of each value, given its numbered path, in its place; null stays."""
    seen = Counter[str]()

    def mapped(value: Any, path: str, in_list: bool, listed: bool) -> Any:
        if isinstance(value, dict):
            return {
                name: mapped(held, field_path(path, name, in_list=in_list), False, listed)
                for name, held in value.items()
            }
        if isinstance(value, list):
            return [mapped(item, list_items_path(path, in_list=in_list), True, True) for item in value]
        if value is None:
            return None
        seen[path] += 1
        return make(numbered(path, seen[path] - 1) if listed else path, value)

    return mapped(answer, "", False, False)


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


Normalizers = Mapping[str, Normalizer]


COUNTS = ("n_gold", "n_said", "n_right", "n_missing", "n_invented")
"""Values that are there, that the answer gives, of these those that are there, and those beyond the other number."""


def field_score(golds: Sequence[str], answer: str | None, normalise: Normalizers) -> float:
    """Return 1 if the answer equals a gold one, else the best F1 over fields, below 1. No answer scores 0."""
    said = _parsed(answer)
    return 0.0 if said is None else max((_score(_parsed(gold), said, normalise) for gold in golds), default=0.0)


def wrong_fields(
    names: Sequence[str], golds: Sequence[str], answer: str | None, normalise: Normalizers
) -> tuple[str, ...]:
    """Return which of the top-level fields `names` differ from the gold answer that leaves the fewest; all if None.

    A field that is left out is the same as null.
    """
    said = _parsed(answer)
    if said is None:
        return tuple(names)

    def key(answer: Any, name: str) -> Hashable:
        return comparison_key({name: answer.get(name)}, normalise)

    found = [tuple(name for name in names if key(gold, name) != key(said, name)) for gold in map(_parsed, golds)]
    return min(found, key=len, default=tuple(names))


def field_metrics(rows: Sequence[ScoredAnswer], normalise: Normalizers) -> dict[str, Estimate]:
    """Return the micro metrics of fields (bootstrapped over rows), `missing`, `invented` and `valid`."""
    totals = [_total(by_path) for by_path in _counted(rows, normalise)]
    gold, said, right, missing, invented = np.array(totals, dtype=np.int64).reshape(len(rows), len(COUNTS)).T

    def ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
        return bootstrap_share(lambda at: float(above[at].sum() / max(1, below[at].sum())), len(rows))

    return {
        "field_f1": ratio(2 * right, gold + said),
        "field_precision": ratio(right, said),
        "field_recall": ratio(right, gold),
        "missing": ratio(missing, gold),
        "invented": ratio(invented, said),
        "valid": wilson(sum(row.answer is not None for row in rows), len(rows)),
    }


def counts_by_field(
    paths: Iterable[str], rows: Sequence[ScoredAnswer], normalise: Normalizers
) -> tuple[PartCounts, ...]:
    """Return counts by field: those of `paths` in this order, then others in order of appearance."""
    found = {path: np.zeros(len(COUNTS), dtype=np.int64) for path in paths}
    for by_path in _counted(rows, normalise):
        for path, counts in by_path.items():
            found[path] = found.get(path, 0) + counts
    return tuple(PartCounts(name=path, **dict(zip(COUNTS, n.tolist(), strict=True))) for path, n in found.items())


def _counted(rows: Sequence[ScoredAnswer], normalise: Normalizers) -> list[dict[str, np.ndarray]]:
    """Return the counts of each row by path, against the gold answer nearest to the answer."""
    found = []
    for row in rows:
        said = _parsed(row.answer)
        golds = [_parsed(gold) for gold in row.golds]
        gold = max(golds, key=lambda one: _score(one, said, normalise)) if len(golds) > 1 else golds[0]
        found.append(_by_path(gold, said, normalise))
    return found


def _score(gold: Any, said: Any, normalise: Normalizers) -> float:
    if comparison_key(gold, normalise) == comparison_key(said, normalise):
        return 1.0
    n_gold, n_said, n_right, *_ = _total(_by_path(gold, said, normalise))
    if 2 * n_right == n_gold + n_said > 0:  # right values, but at the wrong objects of a list: as if one were wrong
        return float(1 - 1 / n_gold)
    return float(2 * n_right / max(1, n_gold + n_said))


def _by_path(gold: Any, said: Any, normalise: Normalizers) -> dict[str, np.ndarray]:
    there, given = _values(gold, normalise), _values(said, normalise)
    found = {}
    for path in {**there, **given}:
        g, s = there.get(path, Counter()), given.get(path, Counter())
        n_gold, n_said = g.total(), s.total()
        found[path] = np.array([n_gold, n_said, (g & s).total(), max(0, n_gold - n_said), max(0, n_said - n_gold)])
    return found


def _values(answer: Any, normalise: Normalizers) -> dict[str, Counter[Any]]:
    return {
        path: Counter(normalize_value(value, normalise.get(path, "exact")) for value in values)
        for path, values in flatten(answer).items()
    }


def _total(by_path: Mapping[str, np.ndarray]) -> np.ndarray:
    return sum(by_path.values(), np.zeros(len(COUNTS), dtype=np.int64))


def _parsed(answer: str | None) -> Any:
    return None if answer is None else json.loads(answer)
