"""Tasks with their figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from fixtures.traffic import SORT, SORT_AGAIN, cases_of, exchange, sorted_tickets, template_of

from smallfirst.traffic.discovery.tasks import (
    RecurringTask,
    find_tasks,
    group_wordings,
    jaccard,
    same_task,
    task_name_of,
    total_cost_usd,
)
from smallfirst.traffic.discovery.wordings import Wording
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.task_source import Template, TextPattern, TurnPattern
from smallfirst.traffic.wire import read_prompt


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
    assert task.format_check is not None
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


def test_a_task_without_words_is_called_task() -> None:
    cases = cases_of([exchange(i, "...", str(i), "yes") for i in range(3)])
    assert task_name_of(Wording(template_of("..."), cases)) == "task"


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


def pattern(role: str, *pieces: str) -> TurnPattern:
    return TurnPattern(role=role, text=TextPattern(pieces=pieces))


def tickets(system: str, *, start: int = 0, seed: int = 0, n: int = 90) -> Wording:
    return Wording(template_of(system, "Message: "), cases_of(sorted_tickets(n, system, start=start, seed=seed)))


def test_versions_of_a_prompt_are_one_task() -> None:
    assert same_task(tickets(SORT), tickets(SORT_AGAIN, seed=1))


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
        turns = (pattern("system", prompt.turns[0].text), pattern("user", "", ""))
        wordings.append(Wording(Template(turns=turns, response_format=prompt.response_format), cases_of(exchanges)))
    assert jaccard(wordings[0].words, wordings[1].words) > 0.5
    assert [len(wording.cases) for wording in wordings] == [40, 40]
    assert len(group_wordings(wordings)) == 2


def test_groups_come_by_size_and_their_wordings_by_time() -> None:
    new, old = tickets(SORT_AGAIN, start=500, n=40), tickets(SORT, seed=1)
    single = [exchange(i, "Write a poem.", f"{i}", f"Roses of kind {i} " * 9) for i in range(200)]
    poems = Wording(template_of("Write a poem."), cases_of(single))
    assert group_wordings([new, poems, old]) == [[poems], [old, new]]
