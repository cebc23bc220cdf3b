"""What is learned from rows: which fields can be marked, in which form, which are closed, and what needs writing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smallfirst.data.dataset import Example, Message
from smallfirst.models.spans.alignment import align, learn_plan, parse_row
from smallfirst.models.spans.plan import AnswerPlan
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.schema_inference import infer_schema

CITIES = ("Bern", "Rome", "Oslo", "Paris", "Bonn", "Graz", "Lyon", "Nice", "Kiel", "Ulm", "Riga", "Bari")


def example(text: str, answer: Any) -> Example:
    return Example(messages=(Message(role="user", content=text),), answer=json.dumps(answer), shape="target")


def learned(rows: list[tuple[str, Any]], **settings: Any) -> tuple[Extract, AnswerPlan, str]:
    schema = settings.pop("schema", None) or infer_schema([answer for _, answer in rows])
    task = Extract(name="toy", json_schema=schema, **settings)
    return (task, *learn_plan(task, [example(*row) for row in rows]))


def trips(**more: Any) -> list[tuple[str, Any]]:
    """36 rows: a city as it stands, a price in figures, a kind in other words."""
    found = []
    for n, city in enumerate(CITIES * 3):
        kind, word = ("air", "fly") if n % 2 else ("rail", "go")
        text = f"I {word} to {city} for {n},50 EUR on {n % 28 + 1:02}.03.2025"
        own = {name: make(n) for name, make in more.items()}
        found.append((text, {"city": city, "price": n + 0.5, "kind": kind, "day": f"2025-03-{n % 28 + 1:02}"} | own))
    return found


def test_each_field_is_found_in_its_own_way() -> None:
    _, plan, why = learned(trips())
    assert [(field.path, field.how, field.forms, field.values) for field in plan.fields] == [
        ("city", "span", ("text",), ()),
        ("price", "span", ("number",), ()),
        ("kind", "closed", (), ('"air"', '"rail"')),
        ("day", "span", ("date",), ()),
    ]
    assert why == ""


def test_a_field_that_needs_writing_is_named_with_its_share() -> None:
    _, _, why = learned(trips(summary=lambda n: f"a trip of {n} days" if n % 2 else CITIES[n % 12]))
    assert why == "50 % of the values of `summary` do not occur in their texts"


def test_a_few_rows_without_the_value_in_the_text_are_forgiven() -> None:
    rows = trips()
    rows[0][1]["city"] = "Berne"
    assert learned(rows)[2] == ""


def test_days_after_another_date_are_a_form() -> None:
    rows = []
    for n in range(40):
        due = f"2025-03-{n % 20 + 11}" if n % 2 else f"2025-03-{n % 20 + 6:02}"
        written = f"due {due}" if n % 2 else "net 5"
        rows.append((f"sent 2025-03-{n % 20 + 1:02}, {written}", {"sent": f"2025-03-{n % 20 + 1:02}", "due": due}))
    _, plan, why = learned(rows)
    assert (plan.fields[1].forms, why) == (("date", "days:sent"), "")


@pytest.mark.parametrize(
    ("rows", "absent"),
    [([{"a": "x"}, {"a": None}], "null"), ([{"a": "x"}, {}], ""), ([{"a": "x"}, {"a": ""}], '""')],
)
def test_what_stands_for_no_value_is_learned(rows: list[Any], absent: str) -> None:
    _, plan, _ = learned([("x", answer) for answer in rows * 20])
    assert plan.fields[0].absent == absent


def test_a_value_of_a_schemas_list_is_closed_and_one_that_must_be_there_is_marked_as_such() -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["S", "M"]}, "city": {"type": "string"}},
        "required": ["city"],
    }
    rows = [("S to Bern", {"size": "S", "city": "Bern"}), ("to Rome", {"city": "Rome"})]
    _, plan, _ = learned(rows, schema=schema)
    assert [(f.how, f.values, f.must) for f in plan.fields] == [("closed", ("", '"S"'), False), ("span", (), True)]


def test_every_place_of_a_value_is_kept_and_list_items_follow_one_another() -> None:
    task, plan, _ = learned([("Bern, Rome, Bern: Oslo or Oslo", {"to": ["Bern", "Rome", "Bern"], "by": "Oslo"})] * 20)
    found = align(
        task, plan, parse_row(example("Bern, Rome, Bern: Oslo or Oslo", {"to": ["Bern", "Rome", "Bern"], "by": "Oslo"}))
    )
    by_path = [(plan.spans[value.field].path, value.places) for value in found]
    assert [places for path, places in by_path if path == "to"] == [((0, 4),), ((6, 10),), ((12, 16),)]
    assert [places for path, places in by_path if path == "by"] == [((18, 22), (26, 30))]


def test_objects_of_a_list_are_told_apart_by_the_rule_that_gives_most_rows_back() -> None:
    full = [("ham 3\nnut 4", {"items": [{"name": "ham", "price": 3}, {"name": "nut", "price": 4}]})] * 10
    gaps = [("3\nnut", {"items": [{"price": 3}, {"name": "nut"}]})] * 10
    assert [learned(rows)[1].one_object_a_line for rows in (full, full + gaps)] == [False, True]
    tangled = [("ham nut 3 4", {"items": [{"name": "ham", "price": 3}, {"name": "nut", "price": 4}]})] * 10
    assert "the objects of `items` cannot be told apart by order or line in 100 % of the rows" in learned(tangled)[2]


def test_lists_within_lists_need_writing() -> None:
    schema = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}},
    }
    assert learned([("a", {"rows": [["a"]]})] * 20, schema=schema)[2] == "`rows[]` is in a list within a list"
