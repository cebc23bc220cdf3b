"""Regular expressions of a schema: those that all engines read alike, matched in linear time.

Thompson's automaton follows all ways to match at once, so a match takes at most characters times states steps, where
Python's own engine tries the ways one by one.
"""

from __future__ import annotations

import functools
import re
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any

MAX_PATTERN_CHARACTERS = 200
MAX_MATCHED_CHARACTERS = 256
"""Longest string that a pattern is tried on; a longer one does not match."""
MAX_STATES = 2_000
"""Most states of an automaton: about the characters of its pattern with counted repeats written out."""

_ACCEPT = 0
_SIMPLE = {"LITERAL", "NOT_LITERAL", "ANY", "IN"}
_REPEATS = {"MAX_REPEAT", "MIN_REPEAT"}
_WARNINGS = threading.Lock()
"""Filters of warnings belong to the process, not to a thread."""
_Matches = Callable[[str], object]


class PatternRefused(ValueError):
    """A pattern that cannot be kept; the message completes "pattern …"."""


def pattern_problem(pattern: str) -> str | None:
    """Return the rule that `pattern` breaks, or None if an answer can be held to it."""
    try:
        Automaton(pattern)
    except PatternRefused as refused:
        return f"pattern {refused}"
    return None


class Automaton:
    """A pattern as states: each takes a character and leads to one state, or takes none and leads to several."""

    def __init__(self, pattern: str) -> None:
        """Raise PatternRefused if engines would read the pattern differently, or if it is too large."""
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            raise PatternRefused(f"of {len(pattern):,} characters; at most {MAX_PATTERN_CHARACTERS} are allowed")
        try:
            items = _parse(pattern)
            self._states: list[tuple[_Matches | None, tuple[int, ...]]] = [(None, ())]
            self._compiled: dict[int, _Matches] = {}
            self._n_built = 0
            anchored = len(items) > 0 and _is_anchor(items[0], "AT_BEGINNING")
            self._whole = len(items) > 0 and _is_anchor(items[-1], "AT_END")
            start = self._sequence(items[int(anchored) : len(items) - int(self._whole)], _ACCEPT)
            self._start = start if anchored else self._repeat(lambda after: self._add(bool, after), 0, None, start)
        except (re.error, OverflowError, RecursionError, FutureWarning) as error:
            raise PatternRefused(f"is no regular expression that all engines read alike: {error}") from None

    @property
    def n_states(self) -> int:
        return len(self._states)

    def search(self, text: str, spend: Callable[[int], None] = lambda steps: None) -> bool:
        """Return True if the pattern matches in a text of at most MAX_MATCHED_CHARACTERS; `spend` is told each step."""
        if len(text) > MAX_MATCHED_CHARACTERS:
            return False
        states = self._closure([self._start])
        for character in text:
            if not self._whole and _ACCEPT in states:
                return True
            spend(len(states))
            taken = (self._states[state] for state in states)
            states = self._closure([leads[0] for matches, leads in taken if matches and matches(character)])
        return _ACCEPT in states

    def _closure(self, states: list[int]) -> set[int]:
        """Return the states with all that they lead to without a character."""
        found: set[int] = set()
        while states:
            if (state := states.pop()) not in found:
                found.add(state)
                matches, leads = self._states[state]
                states += () if matches else leads
        return found

    def _add(self, matches: _Matches | None, *leads: int) -> int:
        self._states.append((matches, leads))
        return len(self._states) - 1

    def _sequence(self, items: Any, after: int) -> int:
        for place in reversed(range(len(items))):
            after = self._item(items[place : place + 1], after)
        return after

    def _item(self, one: Any, after: int) -> int:
        """Add the states of an item, given as a sequence of one, and return the first of them."""
        self._n_built += 1
        if max(self._n_built, self.n_states) > MAX_STATES:
            raise PatternRefused(f"has more than {MAX_STATES:,} parts once its repeats are written out")
        operation, argument = str(one[0][0]), one[0][1]
        if operation in _SIMPLE:
            # Python's engine decides on single characters alone.
            if id(one[0]) not in self._compiled:
                self._compiled[id(one[0])] = vars(re)["_compiler"].compile(one).fullmatch
            return self._add(self._compiled[id(one[0])], after)
        if operation == "SUBPATTERN":
            if argument[1] or argument[2]:
                raise PatternRefused("sets flags: write them out")
            return self._sequence(argument[3], after)
        if operation == "BRANCH":
            return self._add(None, *[self._sequence(branch, after) for branch in argument[1]])
        if operation in _REPEATS:
            least, most, items = argument
            bounded = int(most) if int(most) <= MAX_MATCHED_CHARACTERS else None
            return self._repeat(lambda next: self._sequence(items, next), int(least), bounded, after)
        named = {"GROUPREF": "backreferences", "ASSERT": "look-around", "ASSERT_NOT": "look-around"}
        raise PatternRefused(
            f"has {named.get(operation, 'an anchor inside it or another operation')}, which cannot be kept"
        )

    def _repeat(self, add: Callable[[int], int], least: int, most: int | None, after: int) -> int:
        if most is None:
            loop = self._add(None)
            self._states[loop] = (None, (add(loop), after))
            first = loop
        else:
            first = after
            for _ in range(most - least):
                first = self._add(None, add(first), after)
        for _ in range(min(least, MAX_MATCHED_CHARACTERS + 1)):
            first = add(first)
        return first


@functools.lru_cache(maxsize=64)
def automaton(pattern: str) -> Automaton:
    """Return the automaton of a pattern; the last ones are kept."""
    return Automaton(pattern)


def _parse(pattern: str) -> Any:
    """Return the pattern as Python's own parser sees it: a sequence of (operation, argument)."""
    # Not a documented interface, but of this shape since Python 2; the tests name every operation that is relied on.
    parser: Any = vars(re)["_parser"]
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # "[[a]" means different things in different engines
        tree = parser.parse(pattern)
    if tree.state.flags & ~re.UNICODE:
        raise PatternRefused("sets flags: write them out")
    return tree


def _is_anchor(item: Iterable[Any], which: str) -> bool:
    operation, argument = item
    return str(operation) == "AT" and str(argument) == which
