"""A wording says what its answers are and what its slots are for; tasks are wordings that ask for the same."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from fixtures.traffic import SORT, SORT_AGAIN, cases_of, exchange, sorted_tickets, template, template_of

from smallfirst.traffic.discovery.tasks import (
    RecurringTask,
    Wording,
    choose_slots,
    depends,
    find_tasks,
    group_wordings,
    jaccard,
    read_cases,
    same_task,
    total_cost_usd,
)
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.wire import read_prompt


def wording(answers: list[str]) -> Wording:
    cases = cases_of([exchange(i, "Do it.", f"case {i}", answer) for i, answer in enumerate(answers)])
    return Wording(template_of("Do it."), cases)


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


def uses(slots: tuple[object, ...]) -> dict[str, str]:
    return {slot.name: slot.use for slot in slots}  # type: ignore[attr-defined]


@pytest.mark.parametrize("stamps", [
    [f"2026-10-{i % 28 + 1:02}" for i in range(100)], [f"{i % 28 + 1} October 2026" for i in range(100)],
    [f"Oct {i % 28 + 1}, 2026" for i in range(100)], [f"{10_000 + 7 * i}" for i in range(100)],
    [f"{i * 7919:016x}" for i in range(100)], [f"INV-{i}" for i in range(100)],
    [f"2026-10-01T10:{i % 60:02}:00Z" for i in range(100)],
])  # fmt: skip
def test_stamps_are_ignored(stamps: list[str]) -> None:
    one = template(("user", "Today is ", ".\nMessage: ", ""))
    slots = choose_slots(one, list(zip(stamps, TEXTS, strict=True)), ["a", "b"] * 50)
    assert uses(slots) == {"slot_1": "ignored", "message": "text"}


def test_a_category_counts_if_answers_depend_on_it() -> None:
    rng = random.Random(0)
    channels = [rng.choice(("mail", "phone")) for _ in range(100)]
    one = template(("user", "Channel: ", "\nMessage: ", ""))
    values = list(zip(channels, TEXTS, strict=True))
    by_chance = [rng.choice("ab") for _ in range(100)]
    assert uses(choose_slots(one, values, by_chance)) == {"channel": "ignored", "message": "text"}
    told = ["a" if channel == "mail" else "b" for channel in channels]
    assert uses(choose_slots(one, values, told)) == {"channel": "text", "message": "text"}
    assert not depends(channels, ["a"] * 100)


def test_solved_examples_that_change_are_ignored() -> None:
    labels = ["a" if i % 3 else "b" for i in range(100)]
    shots = TEXTS[::-1]
    inside = template(("user", "Case: ", "\nAnswer: ", "\n\nCase: ", "\nAnswer:"))
    values = list(zip(shots, labels, TEXTS, strict=True))
    slots = choose_slots(inside, values, labels, lambda text: text in ("a", "b"))
    assert [slot.use for slot in slots] == ["ignored", "ignored", "text"]
    turns = template(("user", "", ""), ("assistant", "", ""), ("user", "", ""))
    assert [slot.use for slot in choose_slots(turns, values, labels)] == ["ignored", "ignored", "text"]


# Tasks


def test_versions_make_one_task_with_all_its_cases() -> None:
    old, new = sorted_tickets(60), sorted_tickets(50, SORT_AGAIN, start=60, seed=1, frame='{"queue": "{}"}')
    mined = {template_of(SORT, "Message: "): cases_of(old), template_of(SORT_AGAIN, "Message: "): cases_of(new)}
    (task,) = find_tasks(mined)
    assert len(task.cases) == 110
    assert [len(wording.cases) for wording in task.wordings] == [60, 50]
    assert task.kind == "labels"
    assert sum(task.labels.values()) == 110
    assert total_cost_usd([case for case, _, _ in task.cases]) == pytest.approx(0.11)
    assert task.models == ("big",)
    assert task.name == "sort-customer"
    assert (task.format_check.n_exact, task.format_check.is_exact) == (110, True)
    assert task.answer_format == task.wordings[0].found.format  # type: ignore[union-attr]


def test_few_requests_are_no_task() -> None:
    assert find_tasks({template_of(SORT, "Message: "): cases_of(sorted_tickets(29))}) == []


def test_equal_names_are_told_apart() -> None:
    poems = [exchange(i, "Sort the customer.", f"{i}", f"A long poem number {i} " * 9) for i in range(40)]
    mined = {
        template_of(SORT, "Message: "): cases_of(sorted_tickets(60)),
        template_of("Sort the customer."): cases_of(poems),
    }
    assert [task.name for task in find_tasks(mined)] == ["sort-customer", "sort-customer-2"]


def repeated(answers: str) -> RecurringTask:
    cases = cases_of([exchange(i, SORT, "Message: a" if i % 2 else "Message: b", a) for i, a in enumerate(answers)])
    return RecurringTask("t", [Wording(template_of(SORT, "Message: "), cases)])


def test_repeats_count_the_answers_that_came_again() -> None:
    repeats = repeated("xyxyxyxx").repeats
    assert (repeats.n, repeats.value) == (6, pytest.approx(5 / 6))


def test_an_unpriced_answer_costs_the_mean() -> None:
    cases = cases_of([exchange(1, "s", "u", "a"), exchange(2, "s", "u", "a", cost_usd=None)])
    assert total_cost_usd(cases) == pytest.approx(0.002)
    assert total_cost_usd(cases[1:]) is None


START = datetime(2026, 11, 1, tzinfo=UTC)
OTHER = "Which team is in charge? Answer billing, delivery or account."


def tickets(system: str, *, start: int = 0, seed: int = 0, n: int = 90) -> Wording:
    return Wording(template_of(system, "Message: "), cases_of(sorted_tickets(n, system, start=start, seed=seed)))


def test_the_same_labels_for_other_reasons_are_another_task() -> None:
    turned = {"billing": "delivery", "delivery": "account", "account": "billing"}
    asked = sorted_tickets(90, OTHER, seed=1)
    answers = [e.response["choices"][0]["message"]["content"] for e in asked]
    users = [e.request["messages"][1]["content"] for e in asked]
    cases = cases_of([exchange(i, OTHER, u, turned[a]) for i, (u, a) in enumerate(zip(users, answers, strict=True))])
    second = Wording(template_of(OTHER, "Message: "), cases)
    assert not same_task(tickets(SORT), second)


def test_other_labels_are_another_task() -> None:
    cases = cases_of([exchange(i, SORT, f"Message: {i}", "yes" if i % 2 else "no") for i in range(40)])
    assert not same_task(tickets(SORT), Wording(template_of(SORT, "Message: "), cases))


def test_typed_questions_are_tasks_of_their_own_however_alike() -> None:
    wordings = []
    for question in ("It is about a card.", "It is about a fee."):
        asked = [{"type": "predicate", "instructions": question}]
        exchanges = [
            Exchange(
                id=f"{i}",
                at=START + timedelta(minutes=i),
                route="/v1/decisions",
                request={"model": "m", "input": f"Message {i}", "questions": asked},
                response={"model": "m", "answers": [{"type": "predicate", "probability": i % 2}]},
            )
            for i in range(40)
        ]
        prompt = read_prompt("/v1/decisions", exchanges[0].request)
        turns = (("system", prompt.turns[0].text), ("user", "", ""))
        wordings.append(Wording(template(*turns, response_format=prompt.response_format), cases_of(exchanges)))
    assert jaccard(wordings[0].words, wordings[1].words) > 0.5
    assert [len(wording.cases) for wording in wordings] == [40, 40]
    assert len(group_wordings(wordings)) == 2
