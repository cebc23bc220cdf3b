"""Versions of a wording that differ in a few words only: a slot with few values that is no field of the case."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import TypeVar

from smallfirst.data.importers.constant_text import has_mark, tokens, varies_by_nature
from smallfirst.traffic.templates.template import Template

K = TypeVar("K")
_MOST_VERSIONS = 4
_LEAST_SHARE = 0.03
_LEAST_REPLACED = 3
"""Fewest requests of a version that begins just before the log ends."""
_OVERLAP = 0.02
_BEGIN = re.compile(r"[<\[#*]*[A-Za-z][\w -]{0,30}[>\]:=*]+\s*")
_END = re.compile(r"\n[<\[#*/]*[A-Za-z][\w -]{0,30}[>\]:=*]+\s*$")


def versions(
    template: Template, values: Sequence[tuple[str, ...]], at: Sequence[datetime], least: int
) -> list[list[int]]:
    """Return the indices of the requests of each version; empty if there is one version.

    A slot with up to four values, no dates or numbers, holds words of the prompt if the values replace each other in
    time, or if it stands within a sentence rather than after a mark such as a colon. A slot of cases holds words of the
    prompt if all its values begin and end in one of a few ways, such as `<mail>` and `</mail>`.
    """
    pieces = [(turn.text.pieces, i) for turn in template.turns for i in range(turn.text.n_slots)]
    for (around, i), column in zip(pieces, zip(*values, strict=True), strict=True):
        if groups := _few(column, _LEAST_REPLACED):
            if all(map(_is_number, groups)):
                continue
            times = [[at[k] for k in group] for group in groups.values()]
            in_sentence = bool(around[i].strip()) and not has_mark(around[i].rstrip(" ")[-1:])
            is_frequent = all(len(group) >= max(least, _LEAST_SHARE * len(column)) for group in groups.values())
            if (in_sentence and is_frequent) or _replace_each_other(times):
                return list(groups.values())
        else:
            groups = _few([_frame(value) for value in column], max(least, _LEAST_SHARE * len(column)))
            if sum(bool(begin and end) for begin, end in groups) >= len(groups) - 1 > 0:
                return list(groups.values())
    return []


def _is_number(value: str) -> bool:
    return all(varies_by_nature(token) or not token.isalnum() for token in tokens(value))


def _few(keys: Sequence[K], least: float) -> dict[K, list[int]]:
    """Return the indices of each key; empty if there is one, or more than a few, or one is rarer than `least`."""
    groups: dict[K, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
        if len(groups) > _MOST_VERSIONS:
            return {}
    return groups if len(groups) > 1 and all(len(group) >= least for group in groups.values()) else {}


def _frame(value: str) -> tuple[str, str]:
    """Return a label or tag that a text begins with, and one that is its last line; empty where there is none."""
    begin, end = _BEGIN.match(value), _END.search(value)
    return begin.group() if begin else "", end.group() if end else ""


def _replace_each_other(times: Sequence[Sequence[datetime]]) -> bool:
    """True if each group ends, but for a few stragglers, before the next begins."""
    ordered = sorted((sorted(group) for group in times), key=lambda group: group[len(group) // 2])
    for earlier, later in pairwise(ordered):
        n = min(len(earlier), len(later))
        spare = int(_OVERLAP * n)
        if earlier[-1 - spare] > later[spare]:
            return False
    return True
