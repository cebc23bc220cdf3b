"""Answers assembled from values: in schema order, with what the schema demands, objects of a list told apart."""

import json
from typing import Any

import pytest
from fixtures.rows import example

from smallfirst.data.dataset import Example
from smallfirst.models.spans.plan import AnswerPlan, FieldPlan, FoundValue, align, assemble, learn_plan, parse_row
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.schema import infer_schema, list_fields

ITEM = {"type": "object", "properties": {"name": {"type": "string"}, "price": {"type": "number"}}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": ["string", "null"]},
        "when": {"$ref": "#/$defs/when"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}},
        "items": {"type": "array", "items": ITEM},
    },
    "required": ["city", "when", "tags", "items"],
    "$defs": {"when": {"type": "object", "properties": {"day": {"type": "string"}}}},
}


POINTS = [(f"for{n:02}"[:3], f"{n + 1}.{100 + n} EUR", 1000 * (n + 1) + 100 + n) for n in range(8)] * 3
PLAN = AnswerPlan(
    fields=tuple(FieldPlan(path=f.path, way=f.way, how="span", forms=("text",)) for f in list_fields(SCHEMA))
)


def test_an_object_of_a_list_ends_where_a_field_comes_again() -> None:
    found = {
        "items[].price": [FoundValue(4, 3), FoundValue(13, 4)],
        "items[].name": [FoundValue(0, "ham"), FoundValue(6, "cheese"), FoundValue(15, "bread")],
    }
    assert json.loads(assemble(PLAN, SCHEMA, found))["items"] == [
        {"name": "ham", "price": 3},
        {"name": "cheese", "price": 4},
        {"name": "bread"},
    ]


CITIES = ("Bern", "Rome", "Oslo", "Paris", "Bonn", "Graz", "Lyon", "Nice", "Kiel", "Ulm", "Riga", "Bari")


def json_row(text: str, answer: Any) -> Example:
    return example(text, json.dumps(answer), shape="target")


def learned(rows: list[tuple[str, Any]], **settings: Any) -> tuple[Extract, AnswerPlan, str]:
    schema = settings.pop("schema", None) or infer_schema([answer for _, answer in rows])
    task = Extract(name="toy", json_schema=schema, **settings)
    plan = learn_plan(task, [json_row(*row) for row in rows])
    return task, plan, plan.why


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


def test_whether_a_point_parts_thousands_is_learned_from_the_rows() -> None:
    rows = [(f"{word} {amount}", {"amount": value}) for word, amount, value in POINTS]
    task, plan, why = learned(rows)
    assert [field.forms for field in plan.fields] == [("thousands",)]
    assert [[one.places for one in align(task, plan, parse_row(json_row(*row)))] for row in rows[:1]] == [[((4, 9),)]]
    assert why == ""


def test_a_field_that_needs_writing_is_named_with_its_share() -> None:
    _, _, why = learned(trips(summary=lambda n: f"a trip of {n} days" if n % 2 else CITIES[n % 12]))
    assert why == "50 % of the values of `summary` do not occur in their texts"


def test_values_broken_over_lines_are_marked_and_given_back_as_the_rows_write_them() -> None:
    def rows(between: str) -> list[tuple[str, Any]]:
        streets = [f"{n}, JALAN {city.upper()}" for n, city in enumerate(CITIES * 3)]
        wholes = [f"{street}{between}{n}000 JOHOR" for n, street in enumerate(streets)]
        texts = [f"SHOP\n{street},\n{n}000  JOHOR\nTOTAL 5" for n, street in enumerate(streets)]
        wholes[0] = wholes[0].replace(",", "")  # found all the same, though not given back as it is written
        return [(text, {"address": whole}) for text, whole in zip(texts, wholes, strict=True)]

    task, plan, why = learned(rows(", "))
    assert (plan.fields[0].forms, plan.fields[0].exact, why) == (("spaced",), 35 / 36, "")
    (placed,) = align(task, plan, parse_row(json_row(*rows(", ")[0])))
    assert placed.places == ((5, 31),)
    bare = [(text.replace(",\n", " \n"), answer) for text, answer in rows(", ")]
    assert learned(bare)[1].fields[0].forms == ("commas",)
    assert learned(rows(". "))[2] == (
        "100 % of the values of `address` stand in their texts in other spelling only (normalise: {address: words} "
        "compares without it)"
    )
    _, plan, why = learned(rows(". "), normalise={"address": "words"})
    assert (plan.fields[0].how, plan.fields[0].exact, why) == ("span", 1.0, "")


def labelled(n: int) -> list[str]:
    return [["late"], ["late", "rude"], [], ["refund"]][n % 4]


def test_lists_of_labels_are_judged_from_the_whole_text() -> None:
    _, plan, why = learned(trips(intents=labelled))
    field = plan.fields[-1]
    assert (field.how, field.values, field.absent, field.must, why) == (
        "several", ('"late"', '"refund"', '"rude"'), "[]", False, "",
    )  # fmt: skip
    _, plan, _ = learned(trips(intents=lambda n: labelled(n) or ["other"]))
    assert plan.fields[-1].must  # every row has a label
    _, plan, why = learned(trips(intents=lambda n: ["late", "late"]))
    assert why == "100 % of the values of `intents` do not occur in their texts"  # how often is no label's affair
    _, plan, _ = learned([(f"{text} tag {n % 2}", {"tags": [f"tag {n % 2}"]}) for n, (text, _) in enumerate(trips())])
    assert plan.fields[0].how == "span"  # labels that stand in the text are marked


def test_truths_and_few_numbers_of_the_whole_text_are_closed_and_rare_ones_are_let_go() -> None:
    rows = trips(urgent=lambda n: (True, False, None)[n % 3], guests=lambda n: n % 4 + 1 if n else 77)
    _, plan, _ = learned([(text.replace("0", "x"), answer) for text, answer in rows])
    by_path = {field.path: field for field in plan.fields}
    assert by_path["urgent"].values == ("", "false", "true")
    assert (by_path["guests"].how, by_path["guests"].values) == ("closed", ("1", "2", "3", "4"))


@pytest.mark.parametrize(
    ("rows", "absent"), [([{"a": "x"}, {"a": None}], "null"), ([{"a": "x"}, {}], ""), ([{"a": "x"}, {"a": ""}], '""')]
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
        task,
        plan,
        parse_row(json_row("Bern, Rome, Bern: Oslo or Oslo", {"to": ["Bern", "Rome", "Bern"], "by": "Oslo"})),
    )
    by_path = [(plan.spans[value.field].path, value.places) for value in found]
    assert [places for path, places in by_path if path == "to"] == [((0, 4),), ((6, 10),), ((12, 16),)]
    assert [places for path, places in by_path if path == "by"] == [((18, 22), (26, 30))]


def test_objects_of_a_list_that_cannot_be_told_apart_need_writing() -> None:
    tangled = [("ham nut 3 4", {"items": [{"name": "ham", "price": 3}, {"name": "nut", "price": 4}]})] * 10
    assert learned(tangled)[2] == "the objects of `items` cannot be told apart in 100 % of the rows"


def test_lists_within_lists_need_writing() -> None:
    schema = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}},
    }
    assert learned([("a", {"rows": [["a"]]})] * 20, schema=schema)[2] == "`rows[]` is in a list within a list"
