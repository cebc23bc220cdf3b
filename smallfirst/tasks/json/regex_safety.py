"""Which regular expressions a schema may hold: those that both engines read alike and that finish in time.

The number of ways in which a pattern can match 256 characters bounds Python's backtracking; some harmless patterns
with nested repeats are refused too.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

MAX_PATTERN_CHARACTERS = 200
"""Longest pattern."""
MAX_MATCHED_CHARACTERS = 256
"""Longest string that a pattern is tried on; a longer one does not match."""
MAX_MATCH_PATHS = 2**26
"""Most ways in which a pattern may match: a fraction of a second of backtracking at worst."""

_SIMPLE = {"LITERAL", "NOT_LITERAL", "ANY", "IN"}
_REPEATS = {"MAX_REPEAT", "MIN_REPEAT"}


class _Refused(Exception): ...


def pattern_problem(pattern: str) -> str | None:
    """Return the rule that `pattern` breaks, or None if it is safe in both engines."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return f"pattern of {len(pattern):,} characters; at most {MAX_PATTERN_CHARACTERS} are allowed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # "[[a]" means different things in different engines
            items = _parsed(pattern)
        anchored = bool(items) and _is_anchor(items[0], "AT_BEGINNING")
        end = len(items) - 1 if items and _is_anchor(items[-1], "AT_END") else len(items)
        ways = _ways(items[int(anchored) : end]) * (1 if anchored else MAX_MATCHED_CHARACTERS)
    except _Refused as refused:
        return f"pattern {refused}"
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        return f"pattern is no regular expression that both engines read alike: {error}"
    if ways > MAX_MATCH_PATHS:
        return (
            "pattern could take for ever: nested quantifiers or too many repeats in a row "
            "(start it with ^, or repeat a fixed number of times)"
        )
    return None


def _parsed(pattern: str) -> Sequence[Any]:
    """Return the pattern as Python's own parser sees it: a sequence of (operation, argument)."""
    # Not a documented interface, but of this shape since Python 2; the tests name every operation that is relied on.
    parser: Any = vars(re)["_parser"]
    tree = parser.parse(pattern)
    if tree.state.flags & ~re.UNICODE:
        raise _Refused("sets flags: write them out")
    return list(tree)


def _is_anchor(item: tuple[Any, Any], which: str) -> bool:
    return str(item[0]) == "AT" and str(item[1]) == which


def _ways(items: Sequence[tuple[Any, Any]]) -> int:
    """Return an upper bound on the ways to match one string from one start, cut off above MAX_MATCH_PATHS."""
    product = 1
    for operation, argument in items:
        product = min(product * _ways_of(str(operation), argument), MAX_MATCH_PATHS + 1)
    return product


def _ways_of(operation: str, argument: Any) -> int:
    if operation in _SIMPLE:
        return 1
    if operation == "SUBPATTERN":
        _, added, removed, items = argument
        if added or removed:
            raise _Refused("sets flags: write them out")
        return _ways(list(items))
    if operation == "BRANCH":
        branches = [list(branch) for branch in argument[1]]
        ways = [_ways(branch) for branch in branches]
        return max(ways) if _told_apart_at_once(branches) else sum(ways)
    if operation in _REPEATS:
        least, most, items = argument
        return _repeated(_ways(list(items)), int(least), min(int(most), MAX_MATCHED_CHARACTERS))
    named = {"GROUPREF": "backreferences", "ASSERT": "look-around", "ASSERT_NOT": "look-around"}
    raise _Refused(f"has {named.get(operation, 'an anchor inside it or another operation')}, which cannot be kept")


def _repeated(ways: int, least: int, most: int) -> int:
    """Return the ways of `least` to `most` repeats of something that itself matches in `ways`."""
    if ways == 1:
        return max(1, most - least + 1)
    total = 0
    for n in range(least, most + 1):
        if total > MAX_MATCH_PATHS or n > MAX_MATCH_PATHS.bit_length():  # 2 ** n alone is above the bound
            return MAX_MATCH_PATHS + 1
        total += ways**n
    return max(1, total)


def _told_apart_at_once(branches: Sequence[Sequence[tuple[Any, Any]]]) -> bool:
    """Return True if the first character selects the alternative."""
    if not all(branch and str(branch[0][0]) == "LITERAL" for branch in branches):
        return False
    return len({branch[0][1] for branch in branches}) == len(branches)
