"""Versions of a wording that differ in a few words only: a slot with few values that is no field of the case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from smallfirst.traffic.templates.template import Template

_MOST_VERSIONS = 4
_LEAST_SHARE = 0.03
_OVERLAP = 0.02
_MARKS = ':\n"`<>[](){}#=|'


def versions(
    template: Template, values: Sequence[tuple[str, ...]], at: Sequence[datetime], least: int
) -> list[list[int]]:
    """Return the indices of the requests of each version; empty if there is one version.

    A slot with up to four values holds words of the prompt if the values replace each other in time, or if it stands
    within a sentence rather than after a mark such as a colon.
    """
    pieces = [(turn.text.pieces, i) for turn in template.turns for i in range(turn.text.n_slots)]
    for (around, i), column in zip(pieces, zip(*values, strict=True), strict=True):
        groups: dict[str, list[int]] = defaultdict(list)
        for index, value in enumerate(column):
            groups[value].append(index)
            if len(groups) > _MOST_VERSIONS:
                break
        needed = max(least, _LEAST_SHARE * len(column))
        if 1 < len(groups) <= _MOST_VERSIONS and all(len(group) >= needed for group in groups.values()):
            in_sentence = around[i].rstrip(" ")[-1:] not in _MARKS and bool(around[i].strip())
            if in_sentence or _replace_each_other([[at[k] for k in group] for group in groups.values()]):
                return list(groups.values())
    return []


def _replace_each_other(times: Sequence[Sequence[datetime]]) -> bool:
    """True if each group ends, but for a few stragglers, before the next begins."""
    ordered = sorted((sorted(group) for group in times), key=lambda group: group[len(group) // 2])
    for earlier, later in pairwise(ordered):
        n = min(len(earlier), len(later))
        spare = int(_OVERLAP * n)
        if earlier[-1 - spare] > later[spare]:
            return False
    return True
