"""Tasks with their figures."""

from __future__ import annotations

import pytest
from fixtures.traffic import SORT, SORT_AGAIN, cases_of, exchange, sorted_tickets, template_of

from smallfirst.traffic.discovery.tasks import RecurringTask, find_tasks, task_name_of, total_cost_usd
from smallfirst.traffic.discovery.wordings import Wording


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


def test_drift_compares_both_halves() -> None:
    same, moved = repeated("xy" * 60).drift, repeated("xxxy" * 15 + "yyyx" * 15).drift
    assert same is not None
    assert moved is not None
    assert (same[0], moved[0]) == (0.0, pytest.approx(0.5))
    assert same[1] == pytest.approx(1.0)
    assert moved[1] < 1e-6
    assert repeated("xy" * 20).drift is None


def test_an_unpriced_answer_costs_the_mean() -> None:
    cases = cases_of([exchange(1, "s", "u", "a"), exchange(2, "s", "u", "a", cost_usd=None)])
    assert total_cost_usd(cases) == pytest.approx(0.002)
    assert total_cost_usd(cases[1:]) is None
