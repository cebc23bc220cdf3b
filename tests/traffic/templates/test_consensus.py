"""The constant text around the cases, found from the prompts alone."""

from __future__ import annotations

import random

import pytest

from smallfirst.traffic.templates.consensus import consensus

CASES = [f"parcel {i} has not {word} yet." for i in range(30) for word in ("come", "left")]


@pytest.mark.parametrize(
    "around",
    [
        ("Classify the message of a customer.\n\nMessage: ", ""),
        ("", "\n\nWhich department is it for? Answer in one word."),
        ('File this under one of the labels: """', '"""'),
        ("You are a clerk. Read {this} and answer [a|b]:\n<case>\n", "\n</case>\nAnswer:"),
        ("Sort it.\n\nInput: card lost\nOutput: cards\n\nInput: fee?\nOutput: fees\n\nInput: ", "\nOutput:"),
        ("Labels:\n- card not working\n- top up not working\n- card lost\n- top up lost\n\nText: ", ""),
    ],
)
def test_the_case_is_what_varies(around):
    before, after = around
    pattern = consensus([f"{before}{case}{after}" for case in CASES])
    assert pattern.pieces == (before, after)


def test_dates_numbers_choices_and_the_case_are_slots_of_their_own():
    rng = random.Random(0)
    texts = [
        f"Today is 2026-09-{1 + i % 28:02d}. File it.\n\nTicket: {rng.randrange(9999)}\nTier: "
        f'{rng.choice(["gold", "basic"])}\nMessage: "{case}"'
        for i, case in enumerate(CASES)
    ]
    pieces = ("Today is ", ". File it.\n\nTicket: ", "\nTier: ", '\nMessage: "', '"')
    assert consensus(texts).pieces == pieces


def test_examples_that_change_do_not_hide_the_case():
    texts = [
        f"Sort.\n\nCases:\n- {CASES[i - 7]} => a{i % 5}\n- {CASES[i - 9]} => b{i % 7}\n\nNow: {c}\n=>"
        for i, c in enumerate(CASES)
    ]
    pattern = consensus(texts)
    assert [values[-1] for values in map(pattern.values, texts) if values] == CASES


def test_one_text_in_a_hundred_may_be_another():
    texts = [f"Classify this mail of a client.\nMail: {i} {CASES[i % 60]}" for i in range(200)] + ["hello"] * 2
    assert consensus(texts).pieces == ("Classify this mail of a client.\nMail: ", "")


def test_equal_texts_have_no_slot_and_different_ones_nothing_else():
    assert consensus(["File it."] * 9).pieces == ("File it.",)
    assert consensus(CASES).pieces == ("", "")
