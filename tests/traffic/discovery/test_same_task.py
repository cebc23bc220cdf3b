"""Wordings that ask for one and the same thing are grouped."""

from __future__ import annotations

from fixtures.traffic import SORT, SORT_AGAIN, cases_of, exchange, sorted_tickets, template_of

from smallfirst.traffic.discovery.same_task import group_wordings, jaccard, predicts, same_task
from smallfirst.traffic.discovery.wordings import Wording

OTHER = "Which team is in charge? Answer billing, delivery or account."


def tickets(system: str, *, start: int = 0, seed: int = 0, n: int = 90) -> Wording:
    return Wording(template_of(system, "Message: "), cases_of(sorted_tickets(n, system, start=start, seed=seed)))


def test_versions_of_a_prompt_are_one_task() -> None:
    assert same_task(tickets(SORT), tickets(SORT_AGAIN, seed=1))


def test_another_way_to_ask_is_the_same_task_if_the_answers_are() -> None:
    first, second = tickets(SORT), tickets(OTHER, seed=1)
    assert jaccard(first.words, second.words) < 0.3
    assert predicts(first, second)
    assert same_task(first, second)


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


def test_groups_come_by_size_and_their_wordings_by_time() -> None:
    new, old = tickets(SORT_AGAIN, start=500, n=40), tickets(SORT, seed=1)
    single = [exchange(i, "Write a poem.", f"{i}", f"Roses of kind {i} " * 9) for i in range(200)]
    poems = Wording(template_of("Write a poem."), cases_of(single))
    assert group_wordings([new, poems, old]) == [[poems], [old, new]]
