"""Which patterns are taken: those that all engines read alike. A match takes steps in proportion to the text."""

from __future__ import annotations

import re

import hypothesis
import pytest
from hypothesis import strategies as st

from smallfirst.tasks.json.patterns import (
    MAX_MATCHED_CHARACTERS,
    MAX_PATTERN_CHARACTERS,
    Automaton,
    automaton,
    pattern_problem,
)

HARMLESS = [
    "",
    "^[A-Z]{2}[0-9]{4}$",
    r"^\d{4}-\d{2}-\d{2}$",
    r"^(?:EUR|USD|GBP) \d+(?:\.\d{2})?$",
    "^[^@ ]+@[^@ ]+$",
    r"^a.b\.c[^x]$",
    "^(?:ab|cd){1,8}$",
    "abc",
    "^[a-z]+?$",
    "^é😀$",
    r"^(?:a|)+b{2,}?c??[^\W\d_]\D\s$",
]
BACKTRACKING = [
    "^(a+)+$",
    "^(a|a)*$",
    "^(?:a*)*$",
    "^(?:.*a){20}$",
    "^.*.*.*.*=$",
    r"^(\w+\s?)*$",
    "^(?:a?){26}(?:aa){100}$",
    "(?:(?:a?){30}){30}$",
    "(?:(?:a*)*)*" * 16,
]


@pytest.mark.parametrize("pattern", HARMLESS)
def test_harmless_patterns_are_taken(pattern: str) -> None:
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        (r"^(a)\1$", "backreferences"),
        ("^(?=a)b$", "look-around"),
        ("^(?!a)b$", "look-around"),
        ("(?<=a)b", "look-around"),
        (r"\bword\b", "anchor inside"),
        ("^(?:^a)$", "anchor inside"),
        ("(?i)abc", "flags"),
        ("^(?i:abc)$", "flags"),
        ("[[a]", "read alike"),
        ("(", "read alike"),
        ("a{2,1}", "read alike"),
        ("x" * (MAX_PATTERN_CHARACTERS + 1), "201 characters"),
        ("(?:(?:a{200}){200}){200}", "more than 2,000 parts"),
        ("(?:(?:(){250}){250}){250}", "more than 2,000 parts"),
        ("^(?>a)$", "another operation"),
    ],
)
def test_others_are_refused_with_the_rule(pattern: str, rule: str) -> None:
    problem = pattern_problem(pattern)
    assert problem is not None
    assert rule in problem


@pytest.mark.parametrize("pattern", [*HARMLESS, *BACKTRACKING])
@pytest.mark.parametrize("text", ["a", "ab", "@", "1", "EUR 1", " "])
def test_a_match_takes_at_most_one_step_for_each_character_and_state(pattern: str, text: str) -> None:
    longest = (text * MAX_MATCHED_CHARACTERS)[: MAX_MATCHED_CHARACTERS - 1] + "\N{NULL}"
    made, steps = Automaton(pattern), []
    made.search(longest, steps.append)
    assert sum(steps) <= MAX_MATCHED_CHARACTERS * made.n_states


def test_what_would_be_tried_for_ever_is_decided() -> None:
    assert automaton("^(?:a?){26}(?:aa){100}$").search("a" * 226)
    assert not automaton("^(?:a?){26}(?:aa){100}$").search("a" * 227)


def test_a_text_that_is_too_long_does_not_match() -> None:
    assert automaton("^a*$").search("a" * MAX_MATCHED_CHARACTERS)
    assert not automaton("a").search("a" * (MAX_MATCHED_CHARACTERS + 1))
    assert not automaton("^(?:a|b){257,}$").search("a" * MAX_MATCHED_CHARACTERS)


_ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\W", r"\.", "é"])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "+?"])
    return (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})")
        | st.tuples(inner, repeats).map(lambda two: f"({two[0]}){two[1]}")
    )


@hypothesis.given(
    st.recursive(_ATOMS, _grown, max_leaves=6), st.text("ab1.é\n", max_size=8), st.booleans(), st.booleans()
)
@hypothesis.settings(deadline=None, max_examples=300)
def test_the_automaton_agrees_with_python(pattern: str, text: str, starts: bool, ends: bool) -> None:
    ours = "^" * starts + pattern + "$" * ends
    # Python's $ also matches before a last line end.
    assert automaton(ours).search(text) == bool(re.search("^" * starts + pattern + r"\Z" * ends, text))
