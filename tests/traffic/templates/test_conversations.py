"""System prompts under which people converse."""

from __future__ import annotations

from smallfirst.traffic.messages import Prompt, Turn
from smallfirst.traffic.templates.conversations import Conversations
from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern

SYSTEM = Turn("system", "You are Ada, who helps.")


def template(*pieces):
    system = TurnPattern(role="system", text=TextPattern(pieces=(SYSTEM.text,)))
    return Template(turns=(system, TurnPattern(role="user", text=TextPattern(pieces=pieces))))


def test_requests_that_continue_earlier_ones_make_a_conversation():
    seen = Conversations()
    for i in range(10):
        asked = (SYSTEM, Turn("user", f"question {i}"))
        seen.note(Prompt("", asked))
        seen.note(Prompt("", (*asked, Turn("assistant", f"answer {i}"), Turn("user", "and then?"))))
    assert seen.starts_them(template("", ""))
    assert not seen.starts_them(template("Message: ", ""))


def test_solved_examples_in_messages_are_none():
    seen = Conversations()
    shots = (SYSTEM, Turn("user", "card lost"), Turn("assistant", "cards"))
    for i in range(10):
        seen.note(Prompt("", (*shots, Turn("user", f"question {i}"))))
    assert not seen.starts_them(template("", ""))
