"""Which prompts follow a template, and with what values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smallfirst.traffic.messages import Prompt, Turn
from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern

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
