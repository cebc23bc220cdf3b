"""The tables by label and by field, counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.report.data import ReportData
from smallfirst.report.json_differences import differing_fields
from smallfirst.report.per_class import part_rows
from smallfirst.stats.intervals import wilson
from smallfirst.tasks.task import PartCounts


def test_labels_come_worst_first_with_their_mistakes(make_report: Callable[..., ReportData]) -> None:
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


def test_a_part_that_never_occurs_has_no_recall_and_comes_last() -> None:
    parts = (
        PartCounts(name="none", n_gold=0, n_said=0, n_right=0),
        PartCounts(name="bad", n_gold=3, n_said=1, n_right=0),
    )
    bad, none = part_rows(evaluation_of([], parts=parts), fields=False)
    assert (bad.part.name, none.recall, none.precision) == ("bad", None, None)
