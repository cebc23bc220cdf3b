"""JSON answers field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fixtures.evaluations import evaluated_row
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.evaluation.results import EvaluatedRow
from smallfirst.report.json_differences import (
    FieldPair,
    compare_fields,
    differences_between,
    differing_fields,
    is_within,
)

GOLD = {"guest": {"name": "Ada", "city": "Porto"}, "nights": 3, "extras": ["cot"], "note": None}


def row(said: Any, *, gold: Any = GOLD, **fields: Any) -> EvaluatedRow:
    return evaluated_row("k", json.dumps(gold), None if said is None else json.dumps(said), **fields)


def test_each_field_is_same_wrong_missing_or_invented() -> None:
    said = {"guest": {"name": "ADA ", "city": "Lyon"}, "nights": 3.0, "price": 80}
    assert compare_fields(row(said)) == (
        FieldPair("guest.name", "Ada", "ADA ", "same"),
        FieldPair("guest.city", "Porto", "Lyon", "wrong"),
        FieldPair("nights", "3", "3.0", "same"),
        FieldPair("extras", "cot", "", "missing"),
        FieldPair("price", "", "80", "invented"),
    )


def test_no_answer_misses_every_field_and_broken_json_is_shown_as_it_is() -> None:
    assert [pair.state for pair in compare_fields(row(None))] == ["missing"] * 4
    broken = row(GOLD).model_copy(update={"answer": "{oops"})
    assert differing_fields(broken)[-1] == FieldPair("(not JSON)", "", "{oops", "invented")


def test_of_several_accepted_answers_the_nearest_counts() -> None:
    other = json.dumps({**GOLD, "nights": 4})
    assert differing_fields(row({**GOLD, "nights": 4}, also=(other,))) == ()


def test_the_order_of_a_list_does_not_matter_but_its_items_do() -> None:
    assert differences_between('{"a": ["x", "y"]}', '{"a": ["y", "x"]}') == ()
    assert differences_between('{"a": ["x", "y"]}', '{"a": ["y"]}') == (FieldPair("a", "x, y", "y", "wrong"),)


@pytest.mark.parametrize(
    ("path", "part", "within"),
    [("guest.city", "guest", True), ("items[].price", "items", True), ("a", "a", True), ("guests", "guest", False)],
)
def test_a_field_contains_what_lies_inside_it(path: str, part: str, within: bool) -> None:
    assert is_within(path, part) is within


def test_differences_inside_a_field_are_selected() -> None:
    pairs = differing_fields(row({**GOLD, "guest": {}, "nights": 4}), "guest")
    assert [pair.path for pair in pairs] == ["guest.name", "guest.city"]


@given(
    st.recursive(
        st.text(max_size=5) | st.integers(-9, 9) | st.none() | st.booleans(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)
def test_an_answer_never_differs_from_itself(value: Any) -> None:
    assert differing_fields(row(value, gold=value)) == ()
