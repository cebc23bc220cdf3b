"""A wording says what its answers are."""

from __future__ import annotations

import json

import pytest
from fixtures.traffic import SORT, cases_of, exchange, read_bookings, sorted_tickets, template_of

from smallfirst.traffic.discovery.wordings import Wording


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
