"""What a slot holds, and its name."""

from __future__ import annotations

from collections import Counter

import pytest

from smallfirst.traffic.templates.slots import describe_slots, slot_kind
from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["2026-10-01", "2026-10-02"] * 20, "date"),
        ([f"{10_000 + i}" for i in range(40)], "number"),
        ([f"f27{i}ab" for i in range(40)], "id"),
        (["gold", "silver", "basic"] * 20, "choice"),
        ([f"where is card {i}" for i in range(40)], "text"),
    ],
)
def test_a_slot_is_what_most_of_its_values_look_like(values, kind):
    assert slot_kind(Counter(values)) == kind


def slots(*pieces, turns=()):
    last = TurnPattern(role="user", text=TextPattern(pieces=pieces))
    template = Template(turns=(*turns, last))
    values = [tuple(f"a value {i} {k}" for k in range(template.n_slots)) for i in range(50)]
    return [(slot.name, slot.kind) for slot in describe_slots(template, values)]


def test_a_name_is_in_the_words_before_the_slot():
    assert slots("Do it.\nTicket: ", '\nCustomer tier: "', '"\n<mail>\n', "\n</mail>\n# Input\n", "") == [
        ("ticket", "text"),
        ("customer_tier", "text"),
        ("mail", "text"),
        ("input", "text"),
    ]
    assert slots('{"id": "', '", "text": "', '"}') == [("id", "text"), ("text", "text")]
    assert slots("", "") == [("text", "text")]


def test_solved_examples_in_earlier_messages_are_no_case():
    any_text = TextPattern(pieces=("", ""))
    system = TurnPattern(role="system", text=TextPattern(pieces=("Sort.",)))
    turns = (system, TurnPattern(role="user", text=any_text), TurnPattern(role="assistant", text=any_text))
    assert slots("", "", turns=turns) == [
        ("user_example", "example"),
        ("assistant_example", "example"),
        ("text", "text"),
    ]
