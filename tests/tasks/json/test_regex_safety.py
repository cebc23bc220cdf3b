"""Which patterns are taken: those that both engines read alike, and that cannot run for ever."""

from __future__ import annotations

import re
import time

import pytest

from smallfirst.tasks.json.regex_safety import MAX_MATCHED_CHARACTERS, MAX_PATTERN_CHARACTERS, pattern_problem

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
]


@pytest.mark.parametrize("pattern", HARMLESS)
def test_harmless_patterns_are_taken(pattern: str) -> None:
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("^(a+)+$", "take for ever"),
        ("^(a|a)*$", "take for ever"),
        ("^(a|ab)*$", "take for ever"),
        ("^(?:a*)*$", "take for ever"),
        ("^(?:.*a){20}$", "take for ever"),
        ("^.*.*.*.*=$", "take for ever"),
        (r"^(\w+\s?)*$", "take for ever"),
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
    ],
)
def test_others_are_refused_with_the_rule(pattern: str, rule: str) -> None:
    problem = pattern_problem(pattern)
    assert problem is not None
    assert rule in problem


def test_nesting_without_end_is_refused() -> None:
    assert pattern_problem("(" * 90 + "a" + ")" * 90) is None
    assert pattern_problem("(?:(?:a*)*)*" * 16) is not None


@pytest.mark.parametrize("pattern", HARMLESS)
@pytest.mark.parametrize("text", ["a", "ab", "@", "1", "EUR 1", " "])
def test_what_is_taken_is_matched_at_once(pattern: str, text: str) -> None:
    longest = (text * MAX_MATCHED_CHARACTERS)[: MAX_MATCHED_CHARACTERS - 1] + "\N{NULL}"
    start = time.process_time()
    re.search(pattern, longest)
    assert time.process_time() - start < 1.0
