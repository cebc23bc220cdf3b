"""The constant text around the case in prompts."""

from __future__ import annotations

import random

import pytest

from smallfirst.data.importers.prompt_template import find_template

RNG = random.Random(0)
WORDS = "card bank fee lost when why is my the not sent paid top up abroad app pin late twice"
CASES = [f"{' '.join(RNG.choices(WORDS.split(), k=RNG.randint(4, 12)))} {i % 7}?" for i in range(60)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Classify the message of a customer.\n\nMessage: ", ""),
        ("", "\n\nWhich department is it for? Answer in one word."),
        ('File this under one of the labels: """', '"""'),
        ("You are a clerk. Read {this} and answer [a|b]:\n<case>\n", "\n</case>\nAnswer:"),
    ],
)
def test_what_varies_is_found_between_what_does_not(before: str, after: str) -> None:
    template = find_template([f"{before}{case}{after}" for case in CASES])
    assert template is not None
    assert [template.values(f"{before}{case}{after}") for case in CASES] == [(case,) for case in CASES]


def test_a_date_is_a_gap_of_its_own_and_strangers_follow_no_template() -> None:
    prompts = [f"Today is 2026-09-0{1 + i % 9}. Message of the customer: {case}" for i, case in enumerate(CASES)]
    prompts[0] = "hello there"
    template = find_template(prompts)
    assert template is not None
    assert template.values(prompts[0]) is None
    assert template.values("Today is 2026-09-07. Message of the customer: what?") == ("2026-09-07", "what?")
    assert template.in_words == "Today is … . Message of the customer:"


@pytest.mark.parametrize(
    "prompts",
    [CASES[:2], ["the same text each time"] * 9, [f"{i} where is my {i * 7} card {i * 3}?" for i in range(40)]],
)
def test_texts_that_share_little_have_no_template(prompts: list[str]) -> None:
    assert find_template(prompts) is None
