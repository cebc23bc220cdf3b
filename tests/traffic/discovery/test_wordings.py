"""A wording says what its answers are."""

from __future__ import annotations

import json
import random

import pytest
from fixtures.traffic import SORT, cases_of, exchange, read_bookings, sorted_tickets, template_of

from smallfirst.traffic.discovery.wordings import Wording, choose_slots, depends, read_cases
from smallfirst.traffic.task_source import Template, TextPattern, TurnPattern


def wording(answers: list[str]) -> Wording:
    cases = cases_of([exchange(i, "Do it.", f"case {i}", answer) for i, answer in enumerate(answers)])
    return Wording(template_of("Do it."), cases)


def test_labels() -> None:
    found = Wording(template_of(SORT, "Message: "), cases_of(sorted_tickets(40, frame="Queue: {}")))
    assert found.kind == "labels"
    assert set(found.domain) == {"billing", "delivery", "account"}
    assert found.texts[0].startswith(("where", "the", "please", "I have", "how"))
    assert {"sort", "customer", "message"} <= found.words


def test_fields() -> None:
    found = Wording(template_of("Read the booking as JSON: name, people."), cases_of(read_bookings(40)))
    assert found.kind == "fields"
    assert set(found.domain) == {"name", "people"}


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([json.dumps(["a", "b"][: i % 3]) for i in range(40)], "label lists"),
        ([json.dumps([f"new {i}"]) for i in range(40)], "mixed"),
        ([f"{i} km" for i in range(40)], "short answers"),
        ([f"{i} of them, " * 9 + f"and {i} more" for i in range(40)], "open text"),
    ],
)
def test_other_answers(answers: list[str], kind: str) -> None:
    assert wording(answers).kind == kind


def test_cases_of_other_prompts_are_left_out() -> None:
    cases = cases_of([*sorted_tickets(30), exchange(99, "Do it.", "x", "billing")])
    assert len(Wording(template_of(SORT, "Message: "), cases).cases) == 30


def test_labels_of_the_prompt_count_even_if_they_are_rare() -> None:
    cases = cases_of([*sorted_tickets(30), exchange(99, SORT, "Message: x", "account")])
    only = [case for case in cases if case.answer.text != "account"] + cases[-1:]
    assert Wording(template_of(SORT, "Message: "), only).domain["account"] == 1


def test_cases_are_in_the_order_of_time_and_the_others_are_counted() -> None:
    embedding = exchange(3, "s", "u", "a", route="/v1/embeddings")
    failed = exchange(4, "s", "u", "a", status=429)
    empty = exchange(5, "s", "u", "a", response={"error": "?"})
    long = exchange(6, "s", "x" * 100_001, "a")
    read = read_cases([exchange(2, "s", "u", "a"), exchange(1, "s", "v", "b"), embedding, failed, empty, long])
    assert [case.id for case in read.cases] == ["x1", "x2"]
    assert read.cases[0].answer.text == "b"
    assert read.cases[0].answered_by == "big-2026"
    assert sum(read.left_out.values()) == 4
    assert set(read.left_out) == {
        "/v1/embeddings: no messages",
        "answered with an error",
        "no answer recorded",
        "longer than 100,000 characters",
    }


def test_of_more_cases_than_are_held_each_is_drawn_alike() -> None:
    read = read_cases((exchange(i, "s", f"u{i}", "a") for i in range(4000)), most=1000)
    assert (len(read.cases), read.n) == (1000, 4000)
    numbers = [int(case.id[1:]) for case in read.cases]
    assert numbers == sorted(set(numbers))
    quarters = [sum(number // 1000 == quarter for number in numbers) for quarter in range(4)]
    assert all(195 < n < 305 for n in quarters)  # 250 each, four standard errors of 13.7


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
