"""What prompts share: constant text around the case, and groups of prompts of one wording."""

import random

import pytest

from smallfirst.traffic.discovery.templates import constant_pieces, find_template, wordings
from smallfirst.traffic.task_source import values_between
from smallfirst.traffic.wire import Prompt, Turn

RNG = random.Random(0)
WORDS = "card bank fee lost when why is my the not sent paid top up abroad app pin late twice"
CASES = [f"{' '.join(RNG.choices(WORDS.split(), k=RNG.randint(4, 12)))} {i % 7}?" for i in range(60)]


@pytest.mark.parametrize(
    "around",
    [
        ("Classify the message of a customer.\n\nMessage: ", ""),
        ("", "\n\nWhich department is it for? Answer in one word."),
        ('File this under one of the labels: """', '"""'),
        ("You are a clerk. Read {this} and answer [a|b]:\n<case>\n", "\n</case>\nAnswer:"),
        ("Sort it.\n\nInput: card lost\nOutput: cards\n\nInput: fee?\nOutput: fees\n\nInput: ", "\nOutput:"),
        ("Sort it.\n###\ncard lost -> cards\n", " ->"),
        ("Was ist gemeint? Nachricht: „", "“"),
        ("Labels:\n- card not working\n- top up not working\n- card lost\n- top up lost\n\nText: ", ""),
    ],
)
def test_the_case_is_what_varies(around):
    before, after = around
    texts = [f"{before}{case}{after}" for case in CASES]
    assert constant_pieces(texts) == (before, after)
    if len(before + after) >= 30:
        assert find_template(texts) == (before, after)


def test_dates_numbers_choices_and_the_case_are_slots_of_their_own():
    rng = random.Random(0)
    texts = [
        f"Today is 2026-09-{1 + i % 28:02d}. File it.\n\nTicket: {rng.randrange(9999)}\nTier: "
        f'{rng.choice(["gold", "basic"])}\nMessage: "{case}"'
        for i, case in enumerate(CASES)
    ]
    pieces = ("Today is ", ". File it.\n\nTicket: ", "\nTier: ", '\nMessage: "', '"')
    assert constant_pieces(texts) == pieces


def test_examples_that_change_do_not_hide_the_case():
    texts = [
        f"Sort.\n\nCases:\n- {CASES[i - 7]} => a{i % 5}\n- {CASES[i - 9]} => b{i % 7}\n\nNow: {c}\n=>"
        for i, c in enumerate(CASES)
    ]
    pieces = constant_pieces(texts)
    assert [values[-1] for text in texts if (values := values_between(pieces, text))] == CASES


def test_one_text_in_a_hundred_may_be_another():
    texts = [f"Classify this mail of a client.\nMail: {i} {CASES[i % 60]}" for i in range(200)] + ["hello"] * 2
    assert constant_pieces(texts) == ("Classify this mail of a client.\nMail: ", "")


def test_a_date_is_a_gap_of_its_own_and_strangers_follow_no_template():
    prompts = [f"Today is 2026-09-0{1 + i % 9}. Message of the customer: {case}" for i, case in enumerate(CASES)]
    prompts[0] = "hello there"
    template = find_template(prompts)
    assert template == ("Today is ", ". Message of the customer: ", "")
    assert values_between(template, prompts[0]) is None


@pytest.mark.parametrize(
    "prompts",
    [CASES[:2], ["the same text each time"] * 9, [f"{i} where is my {i * 7} card {i * 3}?" for i in range(40)]],
)
def test_texts_that_share_little_have_no_template(prompts):
    assert find_template(prompts) is None


MADE_UP = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
LABELS = (
    "Answer with one of these labels and nothing else: card arrival, card lost, top up failed, refund, age limit.\n"
)


def case():
    return " ".join(RNG.choices(MADE_UP, k=12))


def groups(texts):
    prompts = [Prompt("", (Turn("user", text),)) for text in texts]
    return sorted(sorted(members.tolist()) for members in wordings(prompts, 10))


def test_wordings_are_groups_and_what_shares_nothing_is_in_none():
    sort = [f"Sort the customer's message by its intent.\n{LABELS}\nMessage: {case()}" for _ in range(30)]
    judge = [f"{case()}\n\nIs the mail above friendly in tone? Answer yes or no, in lower case." for _ in range(30)]
    assert groups([*sort, *(case() for _ in range(40)), *judge]) == [list(range(30)), list(range(70, 100))]


def test_versions_that_share_most_are_groups_of_their_own():
    old = [f"Sort the customer's message by its intent, please. {LABELS}{case()}" for _ in range(30)]
    new = [
        f"You are a clerk at the counter of a bank and file what people write to you. {LABELS}{case()}"
        for _ in range(30)
    ]
    assert groups(old + new) == [list(range(30)), list(range(30, 60))]


def test_layouts_of_cases_are_no_wordings():
    layouts = [
        f"Dear {MADE_UP[i]} team of {MADE_UP[i + 20]}, {' '.join(MADE_UP[i * 15 : i * 15 + 15])} yours"
        for i in range(20)
    ]
    texts = [f"Read this mail and note what it is about. {LABELS}{RNG.choice(layouts)} {case()}" for _ in range(300)]
    assert groups(texts) == [list(range(300))]
