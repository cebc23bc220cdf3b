"""Figures of a report, counted by hand: pairs, costs, and mistakes by label and by field."""

import json
from typing import Any

from fixtures.evaluations import evaluated_row, evaluation_of
from fixtures.report import make_report
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.evaluate import EvaluatedRow
from smallfirst.path.report.measures import FieldPair, break_even_requests, differences, differing_fields, part_rows
from smallfirst.tasks.task import PartCounts

GOLD = {"guest": {"name": "Ada", "city": "Porto"}, "nights": 3, "extras": ["cot"], "note": None}


@given(training=st.floats(0, 1e4), cost=st.floats(0, 10), large=st.floats(0.001, 100))
def test_at_break_even_the_path_has_cost_no_more_than_the_large_one(training: float, cost: float, large: float) -> None:
    needed = break_even_requests(training, cost, large)
    if needed is None:
        assert cost >= large
        return
    assert training + cost * needed / 1000 <= large * needed / 1000 * (1 + 1e-6) + 1e-6


def row(said: Any, *, gold: Any = GOLD, **fields: Any) -> EvaluatedRow:
    return evaluated_row("k", json.dumps(gold), None if said is None else json.dumps(said), **fields)


def test_a_field_is_wrong_missing_or_invented_and_case_spaces_and_zeros_are_no_difference() -> None:
    said = {"guest": {"name": "ADA ", "city": "Lyon"}, "nights": 3.0, "price": 80}
    assert differing_fields(row(said)) == [
        FieldPair("guest.city", "Porto", "Lyon", "wrong"),
        FieldPair("extras", "cot", "", "missing"),
        FieldPair("price", "", "80", "invented"),
    ]


def test_no_answer_misses_every_field_and_broken_json_is_shown_as_it_is() -> None:
    assert [pair.state for pair in differing_fields(row(None))] == ["missing"] * 4
    broken = row(GOLD).model_copy(update={"answer": "{oops"})
    assert differing_fields(broken)[-1] == FieldPair("(not JSON)", "", "{oops", "invented")


def test_of_several_accepted_answers_the_nearest_counts() -> None:
    other = json.dumps({**GOLD, "nights": 4})
    assert differing_fields(row({**GOLD, "nights": 4}, also=(other,))) == []


def test_the_order_of_a_list_does_not_matter_but_its_items_do() -> None:
    assert differences('{"a": ["x", "y"]}', '{"a": ["y", "x"]}') == []
    assert differences('{"a": ["x", "y"]}', '{"a": ["y"]}') == [FieldPair("a", "x, y", "y", "wrong")]


def test_labels_come_worst_first_with_their_mistakes() -> None:
    small = make_report().evaluations[0]
    card, fee = part_rows(small, fields=False)
    # Row 3 is a card question answered fee: F1 is 2·3/(4 + 3) for card and 2·4/(4 + 5) for fee.
    assert (card.part.name, card.part.n_gold, card.recall, card.precision) == ("card", 4, wilson(3, 4), wilson(3, 3))
    assert [error.key for error in card.errors] == ["row3"]
    assert (fee.part.name, fee.recall, fee.precision) == ("fee", wilson(4, 4), wilson(4, 5))


def test_of_several_labels_those_missed_or_wrongly_added_have_the_mistake() -> None:
    rows = [evaluated_row("x", '["card", "fee"]', '["fee", "pin"]'), evaluated_row("y", '["card"]', "[oops")]
    parts = tuple(PartCounts(name=name, n_gold=1, n_said=1, n_right=0) for name in ("card", "fee", "pin"))
    found = {
        row.part.name: [error.key for error in row.errors]
        for row in part_rows(evaluation_of(rows, parts=parts), fields=False)
    }
    assert found == {"card": ["x", "y"], "fee": [], "pin": ["x"]}


def test_a_field_counted_as_a_whole_shows_the_errors_inside_it() -> None:
    gold, said = {"guest": {"name": "Ada", "city": "Porto"}, "nights": 3}, {"guest": {"name": "Ada"}, "nights": 3}
    rows = [
        evaluated_row("x", json.dumps(gold), json.dumps(said)),
        evaluated_row("y", json.dumps(gold), json.dumps(gold)),
    ]
    guest = PartCounts(name="guest", n_gold=2, n_said=2, n_right=1, n_missing=0)
    (found,) = part_rows(evaluation_of(rows, parts=(guest,)), fields=True)
    assert [error.key for error in found.errors] == ["x"]
    assert [pair.path for pair in differing_fields(found.errors[0], "guest")] == ["guest.city"]
    assert found.n_wrong == 1
