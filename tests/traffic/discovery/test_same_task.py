"""Wordings that ask for one and the same thing are grouped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fixtures.traffic import SORT, SORT_AGAIN, cases_of, exchange, sorted_tickets, template_of

from smallfirst.traffic.discovery.same_task import group_wordings, jaccard, predicts, same_task
from smallfirst.traffic.discovery.wordings import Wording
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.messages import read_prompt
from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern

START = datetime(2026, 11, 1, tzinfo=UTC)
OTHER = "Which team is in charge? Answer billing, delivery or account."


def pattern(role: str, *pieces: str) -> TurnPattern:
    return TurnPattern(role=role, text=TextPattern(pieces=pieces))


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
