"""Calibration rows: the tables that are made of evaluations, outcomes at thresholds, and what these show of a limit."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from fixtures.certificates import cascade
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.base.stats.intervals import upper_bound
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.routing.certificate.calibration_set import (
    MIXTURE_LEVELS,
    CalibrationSet,
    FieldTable,
    is_shown,
    measure_risk,
    mixture,
    one_row_a_unit,
    unit_numbers,
)
from smallfirst.routing.certificate.certificate import Guarantee


def drafts(n: int, *, candidate: str = "small", **fields: Any) -> Evaluation:
    rows = [evaluated_row(f"row-{i}", "a", "a" if i else "b", confidence=i / 10, **fields) for i in range(n)]
    return evaluation_of(rows, candidate=candidate)


def test_the_tables_have_a_line_a_stage_and_a_column_a_row() -> None:
    words, small = drafts(4, candidate="words", cost_usd=0.1), drafts(3, cost_usd=0.2)
    large = evaluation_of([evaluated_row("row-1", "a", "a", cost_usd=3.0)], candidate="large")
    rows = CalibrationSet.of([words, small], large, foreign=[[0.2, 0.1], [0.4, 0.3]], selection=[words, small])
    assert (rows.stages, rows.n, rows.n_stages, rows.n_foreign) == (("words", "small"), 3, 2, 2)
    assert rows.confidence.tolist() == [[0.0, 0.1, 0.2]] * 2
    assert rows.right.tolist() == [[False, True, True]] * 2
    assert rows.cost_usd.tolist() == [[0.1] * 3, [0.2] * 3, [3.0] * 3]
    assert (rows.asked.tolist(), rows.large_right.tolist()) == ([False, True, False], [False, True, False])
    assert rows.foreign.tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert rows.selection.n == 3
    assert not CalibrationSet.of([small], large, judged_by="large").paired.any()
    assert len(rows.texts) == 3


@pytest.mark.parametrize(
    ("given", "guarantee", "error", "rule"),
    [
        ([drafts(3, candidate="words"), drafts(5)], Guarantee(), DataError, "words was not measured on 2 of the 5"),
        ([drafts(3), drafts(3)], Guarantee(per_group="label"), ConfigError, "by label covers one drafting stage"),
        ([drafts(3)], Guarantee(per_group="channel"), DataError, "3 of 3 calibration rows have no channel"),
        ([drafts(3)], Guarantee(max_wrong_fields=0.1), ConfigError, "max_wrong_fields: these answers have no fields"),
        (
            [drafts(3, wrong_fields=("date",))],  # and no confidence
            Guarantee(max_wrong_fields=0.1),
            ConfigError,
            "max_wrong_fields: these answers have no fields",
        ),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(
    given: list[Evaluation], guarantee: Guarantee, error: type[Exception], rule: str
) -> None:
    with pytest.raises(error, match=rule):
        CalibrationSet.of(given, guarantee=guarantee)


def test_fields_are_a_table_of_their_own() -> None:
    said = {"items[].price": 0.5, "items[].name": 0.5, "a.b": 0.9}
    table = FieldTable.of([evaluated_row("r", "{}", "{}", field_confidence=said, wrong_fields=("items", "never said"))])
    assert table.names == ("items", "a", "never said")
    assert table.confidence[0].tolist() == [0.25, 0.9, pytest.approx(np.nan, nan_ok=True)]
    assert table.wrong.tolist() == [[True, False, True]]


def test_a_row_without_a_group_is_a_unit_by_itself_and_one_row_of_a_unit_counts() -> None:
    assert unit_numbers(["a", "", "b", "a", ""]).tolist() == [0, 1, 2, 0, 3]
    assert one_row_a_unit(np.array([0, 1, 2, 0, 3])).tolist() in ([0, 1, 2, 4], [1, 2, 3, 4])
    rows = CalibrationSet.of([drafts(9, group="one")])
    assert (rows.n, rows.one_row_a_unit().n, CalibrationSet.of([drafts(9)]).one_row_a_unit().n) == (9, 1, 9)


def test_an_outcome_pays_for_every_draft_on_the_way() -> None:
    rows = cascade([[0.9, 0.1, 0.1], [0.0, 0.9, 0.1]], [[True, True, True], [False, False, False]])
    outcome = rows.outcome((0.5, 0.5))
    assert outcome.stage.tolist() == [0, 1, 2]
    assert outcome.right.tolist() == [True, False, True]
    assert outcome.select(rows.cost_usd.cumsum(axis=0)).tolist() == pytest.approx([0.001, 0.002, 0.102])


def test_the_risks_of_an_outcome_by_hand() -> None:
    # Kept: two right, one wrong (large right there). Sent on: large right, large wrong where small is right.
    large = np.array([1, 1, 1, 1, 0], bool)
    outcome = cascade([0.9, 0.8, 0.7, 0.2, 0.1], [True, True, False, False, True], large_right=large).outcome((0.5,))
    error, loss = (measure_risk(name, outcome, 0.5, 0.05) for name in ("error", "accuracy_loss"))
    assert (error.value, error.n, loss.value, loss.n) == (pytest.approx(1 / 3), 3, pytest.approx(1 / 5), 5)
    assert outcome.mean_cost_usd == pytest.approx((3 * 0.001 + 2 * 0.101) / 5)


def test_a_row_that_the_large_model_was_not_asked_tells_nothing_of_the_accuracy_loss() -> None:
    outcome = cascade([0.1, 0.2, 0.3], [True] * 3, asked=np.array([True, True, False])).outcome((0.5,))
    assert measure_risk("accuracy_loss", outcome, 0.1, 0.05).n == 2


def mixed(own: np.ndarray, right: np.ndarray, foreign: np.ndarray, share: float = 0.5) -> CalibrationSet:
    return dataclasses.replace(cascade(own[None], right[None]), foreign=foreign[None], foreign_share=share)


def test_a_foreign_request_that_is_accepted_counts_as_wrong() -> None:
    own, right = np.array([0.9] * 80 + [0.1] * 20), np.array([True] * 76 + [False] * 4 + [True] * 20)
    outcome = mixed(own, right, np.array([0.9] * 2 + [0.1] * 98)).outcome((0.5,))
    shown = measure_risk("error", outcome, 0.1, 0.05)
    assert shown.value == pytest.approx((0.04 + 0.02) / (0.80 + 0.02))
    as_many = mixed(own, right, np.array([0.9] * 80 + [0.1] * 20)).outcome((0.5,))
    assert measure_risk("error", as_many, 0.1, 0.05).value == pytest.approx((0.05 + 1) / 2)
    assert measure_risk("error", mixed(own, right, np.array([0.1]), 0.0).outcome((0.5,)), 0.1, 0.05).value == 4 / 80
    loose, tight = (is_shown("error", outcome, shown.bound + more, 0.05) for more in (1e-9, -1e-9))
    assert (loose, tight, sum(MIXTURE_LEVELS)) == (True, False, 1.0)


def test_the_bound_is_that_of_the_worst_rates_which_the_rows_allow_for() -> None:
    counts = ((3, 80), (20, 100), (1, 200))
    parts = [upper_bound(*one, confidence=1 - 0.05 * p) for one, p in zip(counts, MIXTURE_LEVELS, strict=True)]
    _, found = mixture(3, 80, 100, (1, 200), 0.3, 0.05)
    own, others = 0.7 * (1 - parts[1]), 0.3 * parts[2]
    assert found == pytest.approx((parts[0] * own + others) / (own + others))
    assert mixture(3, 80, 100, (1, 200), 0.2, 0.05)[1] < found  # a smaller share is easier
    assert mixture(0, 80, 100, (0, 0), 0.3, 0.05)[1] > 0.3  # unknown foreign rows are all accepted
