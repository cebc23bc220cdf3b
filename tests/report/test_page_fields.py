"""JSON answers field by field, and the tables by label and field, counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.evaluation.results import EvaluatedRow
from smallfirst.report.data import ReportData
from smallfirst.report.json_differences import FieldPair, between, differing, same_path, side_by_side, within
from smallfirst.report.per_class import field_trust, part_rows
from smallfirst.stats.intervals import wilson

GOLD = {"guest": {"name": "Ada", "city": "Porto"}, "nights": 3, "extras": ["cot"], "note": None}


def row(said: Any, *, gold: Any = GOLD, also: tuple[str, ...] = (), **more: Any) -> EvaluatedRow:
    """A row whose right answer and answer are JSON."""
    return EvaluatedRow(
        key="k",
        text="t",
        gold=json.dumps(gold),
        also=also,
        answer=None if said is None else json.dumps(said),
        correct=said == gold,
        confidence=0.5,
        stage="small",
        certified=False,
        latency_ms=1.0,
        cost_usd=0.0,
        **more,
    )


def test_each_field_is_same_wrong_missing_or_invented() -> None:
    said = {"guest": {"name": "ADA ", "city": "Lyon"}, "nights": 3.0, "price": 80}
    assert side_by_side(row(said)) == (
        FieldPair("guest.name", "Ada", "ADA ", "same"),
        FieldPair("guest.city", "Porto", "Lyon", "wrong"),
        FieldPair("nights", "3", "3.0", "same"),
        FieldPair("extras[]", "cot", "", "missing"),
        FieldPair("price", "", "80", "invented"),
    )


def test_no_answer_misses_every_field_and_broken_json_is_shown_as_it_is() -> None:
    assert [pair.state for pair in side_by_side(row(None))] == ["missing"] * 4
    broken = row(GOLD).model_copy(update={"answer": "{oops"})
    assert differing(broken)[-1] == FieldPair("(not JSON)", "", "{oops", "invented")


def test_of_several_right_answers_the_nearest_counts() -> None:
    other = json.dumps({**GOLD, "nights": 4})
    assert differing(row({**GOLD, "nights": 4}, also=(other,))) == ()


def test_the_order_of_a_list_does_not_matter_but_its_items_do() -> None:
    assert between('{"a": ["x", "y"]}', '{"a": ["y", "x"]}') == ()
    assert between('{"a": ["x", "y"]}', '{"a": ["y"]}') == (FieldPair("a[]", "x, y", "y", "wrong"),)


@pytest.mark.parametrize("path", ["items[].price", "items[3].price", "items.0.price", "$.items[*].price"])
def test_ways_to_write_a_path_are_one(path: str) -> None:
    assert same_path(path) == "items.price"


def test_a_field_holds_what_lies_inside_it() -> None:
    assert within("guest.city", "guest")
    assert within("extras[]", "extras")
    assert not within("guests", "guest")
    assert [pair.path for pair in differing(row({**GOLD, "guest": {}}), "guest")] == ["guest.name", "guest.city"]


@given(
    st.recursive(
        st.text(max_size=5) | st.integers(-9, 9) | st.none() | st.booleans(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)
def test_an_answer_never_differs_from_itself(value: Any) -> None:
    assert differing(row(value, gold=value)) == ()


def test_labels_come_worst_first_with_their_mistakes(make_report: Callable[..., ReportData]) -> None:
    small = make_report().evaluation("small")
    assert small is not None
    card, fee = part_rows(small, fields=False)
    # Row 3 is a card question answered fee: F1 is 2·3/(4 + 3) for card and 2·4/(4 + 5) for fee.
    assert (card.part.name, card.part.n_gold, card.recall, card.precision) == ("card", 4, wilson(3, 4), wilson(3, 3))
    assert [error.key for error in card.errors] == ["row3"]
    assert (fee.part.name, fee.recall, fee.precision) == ("fee", wilson(4, 4), wilson(4, 5))


def test_a_field_counted_as_a_whole_shows_the_errors_inside_it(samples: dict[str, ReportData]) -> None:
    small = samples["extract"].evaluation("small")
    assert small is not None
    guest = next(found for found in part_rows(small, fields=True) if found.part.name == "guest")
    assert guest.errors
    assert {pair.path for error in guest.errors for pair in differing(error, "guest")} == {"guest.city"}
    assert guest.n_wrong == guest.part.n_gold - guest.part.n_right - guest.part.n_missing


def test_trust_in_a_field_is_its_confidence_against_its_right_answers(samples: dict[str, ReportData]) -> None:
    small = samples["extract"].evaluation("small")
    assert small is not None
    found = {trust.path: trust for trust in field_trust(small)}
    right = sum(json.loads(r.gold)["nights"] == json.loads(r.answer or "{}").get("nights") for r in small.rows)
    assert found["nights"].accuracy == wilson(right, len(small.rows))
    guests = sum(json.loads(r.gold)["guest"] == json.loads(r.answer or "{}").get("guest") for r in small.rows)
    assert found["guest"].accuracy == wilson(guests, len(small.rows))
