"""What slots hold: cases, dates, identifiers, categories and examples."""

from __future__ import annotations

import random

import pytest

from smallfirst.traffic.discovery.slots import choose_slots, depends
from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern

TEXTS = [f"this is what customer {i} wrote to us about it" for i in range(100)]


def template(*turns: tuple[str, tuple[str, ...]]) -> Template:
    return Template(turns=tuple(TurnPattern(role=role, text=TextPattern(pieces=pieces)) for role, pieces in turns))


def uses(slots: tuple[object, ...]) -> dict[str, str]:
    return {slot.name: slot.use for slot in slots}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "stamps",
    [
        [f"2026-10-{i % 28 + 1:02}" for i in range(100)],
        [f"{i % 28 + 1} October 2026" for i in range(100)],
        [f"Oct {i % 28 + 1}, 2026" for i in range(100)],
        [f"{10_000 + 7 * i}" for i in range(100)],
        [f"{i * 7919:016x}" for i in range(100)],
        [f"INV-{i}" for i in range(100)],
        [f"2026-10-01T10:{i % 60:02}:00Z" for i in range(100)],
    ],
)
def test_stamps_are_ignored(stamps: list[str]) -> None:
    one = template(("user", ("Today is ", ".\nMessage: ", "")))
    slots = choose_slots(one, list(zip(stamps, TEXTS, strict=True)), ["a", "b"] * 50)
    assert uses(slots) == {"slot_1": "ignored", "message": "text"}


def test_a_category_counts_if_answers_depend_on_it() -> None:
    rng = random.Random(0)
    channels = [rng.choice(("mail", "phone")) for _ in range(100)]
    one = template(("user", ("Channel: ", "\nMessage: ", "")))
    values = list(zip(channels, TEXTS, strict=True))
    by_chance = [rng.choice("ab") for _ in range(100)]
    assert uses(choose_slots(one, values, by_chance)) == {"channel": "ignored", "message": "text"}
    told = ["a" if channel == "mail" else "b" for channel in channels]
    assert uses(choose_slots(one, values, told)) == {"channel": "text", "message": "text"}
    assert not depends(channels, ["a"] * 100)


def test_two_texts_both_belong_to_the_case() -> None:
    questions = [f"what is the size of number {i} in this text?" for i in range(100)]
    one = template(("user", ("Question: ", "\nContext: ", "")))
    slots = choose_slots(one, list(zip(questions, TEXTS, strict=True)), ["a", "b"] * 50)
    assert uses(slots) == {"question": "text", "context": "text"}


def test_solved_examples_that_change_are_ignored() -> None:
    labels = ["a" if i % 3 else "b" for i in range(100)]
    shots = TEXTS[::-1]
    inside = template(("user", ("Case: ", "\nAnswer: ", "\n\nCase: ", "\nAnswer:")))
    values = list(zip(shots, labels, TEXTS, strict=True))
    slots = choose_slots(inside, values, labels, lambda text: text in ("a", "b"))
    assert [slot.use for slot in slots] == ["ignored", "ignored", "text"]
    turns = template(("user", ("", "")), ("assistant", ("", "")), ("user", ("", "")))
    assert [slot.use for slot in choose_slots(turns, values, labels)] == ["ignored", "ignored", "text"]


def test_names_differ() -> None:
    one = template(("user", ("Text: ", "\nText: ", "")))
    names = [slot.name for slot in choose_slots(one, list(zip(TEXTS, TEXTS, strict=True)), TEXTS)]
    assert names == ["text", "text_2"]
