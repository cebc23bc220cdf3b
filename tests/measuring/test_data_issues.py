"""Dirt put into clean rows is named as what it is, with its rows, its day and its map; clean rows are not accused."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from smallfirst.measuring.data_issues import DataIssue, RecordedRow, find_issues
from smallfirst.measuring.label_noise import estimate_noise

NOUNS = {"card": "pin chip terminal plastic", "loan": "rate mortgage interest debt", "trip": "flight hotel visa bag"}
TOWNS = ("oslo", "rome", "paris", "cairo", "lima", "kyoto")
START = datetime(2026, 10, 1, tzinfo=UTC)
Change = Callable[[int, RecordedRow], RecordedRow]


def labelled(n: int = 360) -> list[RecordedRow]:
    """Texts of twelve words, four of which tell the label; a row an hour, by turns of six tenants."""
    rng, found = random.Random(0), []
    for i in range(n):
        label = sorted(NOUNS)[i % 3]
        words = rng.sample(NOUNS[label].split(), 3) + [f"w{rng.randrange(400)}" for _ in range(6)]
        at = START + timedelta(hours=i)
        found.append(RecordedRow(str(i), " ".join(words), label, at, f"t{rng.randrange(6)}", f"log:{i}"))
    return found


def booked(n: int = 240) -> list[RecordedRow]:
    rng, found = random.Random(1), []
    for i in range(n):
        town, people = rng.choice(TOWNS), str(rng.randrange(2, 9))
        text = f"a table in {town} for {people} w{i} w{rng.randrange(300)}"
        answer, at = {"town": town, "people": people}, START + timedelta(hours=i)
        found.append(RecordedRow(str(i), text, answer, at, "", f"#{i}"))
    return found


def one(rows: list[RecordedRow], kind: str, **known: Any) -> DataIssue:
    found = find_issues(rows, **known)
    assert [issue.kind for issue in found] == [kind]
    return found[0]


def changed(
    rows: list[RecordedRow], which: Callable[[int], bool], to: Callable[[RecordedRow], Any]
) -> list[RecordedRow]:
    return [row._replace(answer=to(row)) if which(i) else row for i, row in enumerate(rows)]


def turned(row: RecordedRow) -> str:
    order = sorted(NOUNS)
    return order[(order.index(row.answer) + 1) % 3]


def test_clean_rows_are_not_accused() -> None:
    assert find_issues(labelled()) == ()
    assert find_issues(booked()) == ()
    assert find_issues(labelled(40)) == ()  # too few to say anything


def test_wrong_answers_are_found_with_what_the_others_say() -> None:
    found = one(changed(labelled(), lambda i: i % 20 == 7, turned), "answers")
    wrong = {str(i) for i in range(7, 360, 20)}
    assert wrong == set(found.keys)
    assert found.suggested == {row.key: row.answer for row in labelled() if row.key in wrong}
    assert found.examples[0].suggested in NOUNS
    assert found.in_words[0] == "answers that are probably wrong (some 18 of them are): 18 of 360 rows (5.0%)"
    assert found.in_words[1].endswith("up to 5.0% of the answers")


def test_of_a_field_that_few_rows_lack_these_alone_are_doubted() -> None:
    rows = [row._replace(answer=row.answer | ({"id": f"w{i}"} if i % 20 else {})) for i, row in enumerate(booked())]
    assert set(one(rows, "answers").keys) == {str(i) for i in range(0, 240, 20)}


def test_a_renamed_list_is_one_finding_with_day_and_map() -> None:
    rows = changed(labelled(), lambda i: i >= 240, lambda row: f"x{sorted(NOUNS).index(row.answer)}")
    found = one(rows, "versions")
    assert found.names == {"card": "x0", "loan": "x1", "trip": "x2"}
    assert found.since == START + timedelta(hours=240)
    assert set(found.keys) == {str(i) for i in range(240, 360)}


def test_renamed_fields_are_matched_by_their_values() -> None:
    rows = changed(booked(), lambda i: i >= 200, lambda row: {"a": row.answer["people"], "b": row.answer["town"]})
    assert one(rows, "versions").names == {"town": "b", "people": "a"}


def test_a_changed_rule_is_told_from_a_renamed_list() -> None:
    rows = changed(labelled(), lambda i: i >= 240 and i % 3 == 0, lambda _: "trip")
    found = one(rows, "rule")
    assert found.names == {"card": "trip"}
    assert abs(found.since - START - timedelta(hours=240)) < timedelta(hours=12)


def test_a_tenant_that_is_answered_unlike_all_others_is_named() -> None:
    rows = [row._replace(answer=turned(row)) if row.tenant == "t3" else row for row in labelled()]
    found = one(rows, "tenant")
    assert found.tenant == "t3"
    assert found.n == sum(row.tenant == "t3" for row in rows)


def test_answers_outside_the_list_and_of_another_task_are_set_apart() -> None:
    assert one(changed(labelled(), lambda i: i % 50 == 0, lambda _: "pizza"), "outside", labels=[*NOUNS]).n == 8
    assert one(changed(booked(), lambda i: i % 40 == 0, lambda _: {"song": "x", "band": "y"}), "foreign").n == 6


def test_values_from_elsewhere_and_copies_that_disagree() -> None:
    rows = changed(booked(), lambda i: i % 60 == 5, lambda row: row.answer | {"town": "atlantis"})
    assert set(one(rows, "values").keys) == {"5", "65", "125", "185"}
    euros = [
        row._replace(answer=row.answer | {"due": f"EUR {i}" if i % 4 == 0 else row.answer["town"]})
        for i, row in enumerate(rows)
    ]
    assert one(euros, "values").n == 4  # a field that is often written otherwise is left alone
    rows = labelled()
    rows[100:103] = [rows[1]._replace(key=f"c{k}", text=rows[1].text.upper(), answer="trip") for k in range(3)]
    rows[102] = rows[102]._replace(answer=rows[1].answer)
    found = one(rows, "copies")  # two say one thing and two another: the model of the other rows decides
    assert set(found.keys) == {"c0", "c1"}
    assert set(found.suggested.values()) == {rows[1].answer}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_the_share_of_wrong_labels_is_estimated_and_each_row_judged(share: float) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, size=4_000)
    scores = np.eye(5)[truth] * 0.5 + rng.normal(0, 0.1, size=(4_000, 5))
    given = np.where(rng.random(4_000) < share, rng.integers(0, 5, size=4_000), truth)
    found = estimate_noise(scores, given)
    assert found.share == pytest.approx(share, abs=0.015)
    assert found.wrong.mean() == pytest.approx(found.share, abs=1e-3)
    assert np.mean((found.wrong > 0.5) == (given != truth)) > 0.98
