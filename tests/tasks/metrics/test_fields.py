"""Counts, scores and figures by field, worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smallfirst.base.stats.intervals import wilson
from smallfirst.tasks.metrics.fields import counts_by_field, field_metrics, field_score, wrong_fields
from smallfirst.tasks.task import PartCounts, ScoredAnswer


def row(gold: Any, said: Any, *others: Any) -> ScoredAnswer:
    golds = tuple(json.dumps(one) for one in (gold, *others))
    answer = None if said is None else json.dumps(said)
    return ScoredAnswer(golds, answer, field_score(golds, answer, {}))


ROWS = (
    row({"who": "Ada", "n": "2"}, {"who": "Ada", "n": "2"}),  # 2 there, 2 said, 2 right
    row({"who": "Ada", "n": "2"}, {"who": "Eva", "day": "May"}),  # 2, 2, 0, 1 missing, 1 invented
    row({"tags": ["a", "b", "b"]}, {"tags": ["b", "b", "c", "d"]}),  # 3, 4, 2, 0 missing, 1 invented
    row({"who": "Ada"}, None),  # 1, 0, 0, 1 missing
    row({}, {}),
    row({"day": None, "tags": []}, {"day": "May"}),  # 0, 1, 0, 1 invented
)


def test_figures_count_values_over_all_rows() -> None:
    found = field_metrics(ROWS, {})
    assert list(found) == ["field_f1", "field_precision", "field_recall", "missing", "invented", "valid"]
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == pytest.approx(
        {
            "field_f1": 2 * 4 / (8 + 9),
            "field_precision": 4 / 9,
            "field_recall": 4 / 8,
            "missing": 2 / 8,
            "invented": 3 / 9,
            "valid": 5 / 6,
        }
    )
    assert found["valid"] == wilson(5, 6)
    assert all(0 <= e.low <= e.value <= e.high <= 1 and e.n == 6 for e in found.values())


def test_parts_count_each_field_in_the_order_of_the_schema() -> None:
    assert counts_by_field(["n", "who", "never"], ROWS, {}) == (
        PartCounts(name="n", n_gold=2, n_said=1, n_right=1, n_missing=1),
        PartCounts(name="who", n_gold=3, n_said=2, n_right=1, n_missing=1),
        PartCounts(name="never", n_gold=0, n_said=0, n_right=0),
        PartCounts(name="day", n_gold=0, n_said=2, n_right=0, n_invented=2),
        PartCounts(name="tags", n_gold=3, n_said=4, n_right=2, n_invented=1),
    )


@pytest.mark.parametrize(
    ("gold", "said", "score"),
    [
        ({"a": 1, "b": "x"}, {"b": "x", "a": 1.0}, 1.0),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, 1.0),
        ({"a": None}, {}, 1.0),
        ({}, {}, 1.0),
        ({}, {"a": "x"}, 0.0),
        ({"a": "x"}, {}, 0.0),
        ({"a": "x", "b": "y"}, {"a": "x"}, 2 / 3),
        ({"a": "x", "b": "y"}, {"a": "x", "b": "z"}, 1 / 2),
        ({"a": True}, {"a": 1}, 0.0),
        ({"a": "x"}, None, 0.0),
        ({}, None, 0.0),
    ],
)
def test_a_row_scores_one_if_every_field_is_right(gold: Any, said: Any, score: float) -> None:
    assert row(gold, said).score == pytest.approx(score)


def test_values_at_the_wrong_object_are_not_right() -> None:
    gold = {"items": [{"n": "tea", "p": 2}, {"n": "cake", "p": 4}]}
    mixed = {"items": [{"n": "tea", "p": 4}, {"n": "cake", "p": 2}]}
    assert row(gold, mixed).score == 3 / 4
    assert row(gold, {"items": gold["items"][::-1]}).score == 1.0


def test_the_nearest_gold_answer_counts() -> None:
    answered = row({"a": "x", "b": "y"}, {"a": "z"}, {"a": "q", "b": "r"}, {"a": "z"})
    assert answered.score == 1.0
    assert counts_by_field(["a", "b"], [answered], {})[1] == PartCounts(name="b", n_gold=0, n_said=0, n_right=0)


def test_values_are_compared_as_the_task_says() -> None:
    golds, answer = ('{"day": "2024-05-03", "to": "Graz"}',), '{"day": "May 3rd, 2024", "to": "graz"}'
    assert field_score(golds, answer, {}) == 0.0
    assert field_score(golds, answer, {"day": "date"}) == 0.5
    assert field_score(golds, answer, {"day": "date", "to": "case"}) == 1.0
    answered = ScoredAnswer(golds, answer, 0.5)
    assert field_metrics([answered], {"day": "date"})["field_recall"].value == 0.5
    assert [part.n_right for part in counts_by_field(["day", "to"], [answered], {"day": "date"})] == [1, 0]


def test_wrong_fields_are_named_at_the_top_level_against_the_nearest_gold() -> None:
    names = ("date", "items", "note")
    gold = '{"date": "1 May", "items": [{"n": 1}, {"n": 2}], "note": null}'
    assert wrong_fields(names, [gold], gold, {}) == ()
    assert wrong_fields(names, [gold], '{"date": "1 may", "items": [{"n": 2}, {"n": 1}]}', {}) == ("date",)
    assert wrong_fields(names, [gold], '{"date": "1 may", "items": []}', {"date": "case"}) == ("items",)
    assert wrong_fields(names, ['{"date": "x"}', '{"date": "y", "note": "z"}'], '{"date": "y"}', {}) == ("date",)
    assert wrong_fields(names, [gold], None, {}) == names
