"""Which prompts follow a template, and with what values."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.traffic.discovery.templates import constant_pieces, find_template, tokens
from smallfirst.traffic.task_source import (
    AnswerFormat,
    TaskSource,
    TaskTemplate,
    Teacher,
    Template,
    TemplateSlot,
    TextPattern,
    TurnPattern,
    values_between,
)
from smallfirst.traffic.wire import Prompt, Turn

PATTERN = TextPattern(pieces=("Ticket: ", "\nDate: ", "\nLabel:"))


def test_values_stand_in_the_slots():
    assert PATTERN.values("Ticket: lost card\nDate: today\nLabel:") == ("lost card", "today")
    assert PATTERN.values("Ticket: lost card\nLabel:") is None
    assert PATTERN.values("A ticket: lost\nDate: today\nLabel:") is None


@given(st.tuples(st.text(), st.text()).filter(lambda v: "\nDate: " not in v[0]))
def test_what_is_filled_in_is_read_again(values):
    assert PATTERN.values(f"Ticket: {values[0]}\nDate: {values[1]}\nLabel:") == values


def test_a_prompt_follows_in_all_of_its_messages_or_not_at_all():
    system = TurnPattern(role="system", text=TextPattern(pieces=("File it.",)))
    template = Template(turns=(system, TurnPattern(role="user", text=TextPattern(pieces=("", "")))))
    asked = Prompt("m", (Turn("system", "File it."), Turn("user", "lost")))
    assert template.values(asked) == ("lost",)
    assert template.values(asked._replace(turns=(*asked.turns, Turn("user", "more")))) is None
    assert template.values(asked._replace(tools="[]")) is None
    assert template.values(asked._replace(has_media=True)) is None
    assert template.values(asked._replace(turns=(Turn("system", "File it"), asked.turns[1]))) is None
    assert template.id != template.model_copy(update={"tools": "[]"}).id


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


def test_short_words_between_numbers_and_dates_are_the_prompts():
    texts = [
        f"From customer {i * 37} on Monday, October {1 + i % 28:02d}, 2026:\n{case}\n\nFile it."
        for i, case in enumerate(CASES)
    ]
    assert constant_pieces(texts) == ("From customer ", " on ", ":\n", "\n\nFile it.")


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


def test_equal_texts_have_no_slot_and_different_ones_nothing_else():
    assert constant_pieces(["File it."] * 9) == ("File it.",)
    assert constant_pieces(CASES) == ("", "")


@given(st.text())
def test_tokens_together_are_the_text(text):
    assert "".join(tokens(text)) == text


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


def wording(pieces, slots):
    template = Template(turns=(TurnPattern(role="user", text=TextPattern(pieces=pieces)),))
    return TaskTemplate(template=template, slots=slots)


def source():
    first = wording(("File: ", ""), (TemplateSlot(name="text"),))
    second = wording(
        ("On ", ", ", " wrote: ", ""),
        (TemplateSlot(name="date", use="ignored"), TemplateSlot(name="who"), TemplateSlot(name="text")),
    )
    return TaskSource(
        name="tickets", templates=(first, second), answer_format=AnswerFormat(kind="label"), teacher=Teacher(model="m")
    )


def asked(text):
    return Prompt("m", (Turn("user", text),))


def test_every_wording_gives_its_case():
    first, second = source().templates
    assert first.text(asked("File: lost")) == "lost"
    assert second.text(asked("On Monday, Ann wrote: lost")) == "who: Ann\ntext: lost"
    assert (first.text(asked("Write a poem")), second.text(asked("File: lost"))) == (None, None)
