"""Units: which rows count, and how often a promise breaks when rows of a unit are right and wrong together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fixtures.certificates import falling

from smallfirst.routing.certificate import units
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT
from smallfirst.routing.certificate.units import FieldTable, one_row_a_unit, unit_numbers


def named(*names: str) -> np.ndarray:
    return np.array(names, dtype=object)


def one_part(
    confidence: list[float] | np.ndarray, wrong: list[bool] | np.ndarray, group: np.ndarray | None
) -> FieldTable:
    return FieldTable(np.asarray(confidence, dtype=float)[:, None], np.asarray(wrong, dtype=bool)[:, None], group)


def test_a_row_without_a_group_is_a_unit_by_itself() -> None:
    assert unit_numbers(named("a", "", "b", "a", ""), 5).tolist() == [0, 1, 2, 0, 3]
    assert unit_numbers(None, 3).tolist() == [0, 1, 2]
    assert one_row_a_unit(None, 3).tolist() == [0, 1, 2]
    chosen = one_row_a_unit(named("a", "", "b", "a", ""), 5).tolist()
    assert len(chosen) == 4
    assert chosen in ([0, 1, 2, 4], [1, 2, 3, 4])


def test_the_mean_of_a_unit_is_that_of_its_rows_and_parts() -> None:
    parts = FieldTable(np.zeros((3, 2)), np.zeros((3, 2), dtype=bool), named("a", "b", "a"))
    values = np.array([[1, 1], [1, 0], [1, 0]])
    assert parts.means(values).tolist() == pytest.approx([(1 + 0.5) / 2, 0.5])


def test_twenty_groups_are_twenty_observations_however_many_rows_they_have() -> None:
    group = np.repeat(np.arange(20).astype(str).astype(object), 50)
    right = np.zeros(1000, dtype=bool)
    assert one_part(falling(1000), right, None).search(0.05, level=0.05).threshold <= 1
    assert one_part(falling(1000), right, group).search(0.05, level=0.05).threshold == NEVER_ACCEPT
    assert one_part(falling(1000), right, group).search(0.2, level=0.05).threshold <= 1  # 0.8^20 = 0.0115


def test_many_units_are_bet_on_as_a_whole() -> None:
    # Every row has one wrong field of ten: that is exactly a tenth, with no spread, so a limit of 0.15 is soon shown.
    wrong = np.zeros((200, 10), dtype=bool)
    wrong[:, 3] = True
    found = FieldTable(np.full((200, 10), 0.9), wrong, None).search(0.15, level=0.05)
    assert found.threshold <= 0.9
    assert 0.1 < found.bound < 0.15
    assert FieldTable(np.full((200, 10), 0.9), wrong, None).search(0.1, level=0.05).threshold == NEVER_ACCEPT


def test_without_rows_nothing_is_shown() -> None:
    found = one_part([], [], None).search(0.1, level=0.05)
    assert (found.threshold, found.bound) == (NEVER_ACCEPT, 1.0)


@pytest.mark.parametrize("means_from", [0.0, 1e9])
def test_a_promise_holds_where_rows_of_a_group_are_right_and_wrong_together(
    means_from: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "MIN_EXPECTED", means_from)
    draw, sets, broken = np.random.default_rng(0), 200, {"groups": 0, "rows": 0}
    group = np.repeat(np.arange(60).astype(str).astype(object), 5)
    for _ in range(sets):
        wrong = np.repeat(draw.random(60) < 0.201, 5)  # breaks 20 % by a hair, whatever the threshold
        confidence = draw.random(300)
        broken["groups"] += one_part(confidence, wrong, group).search(0.2, level=0.05).threshold <= 1
        broken["rows"] += one_part(confidence, wrong, None).search(0.2, level=0.05).threshold <= 1
    assert broken["groups"] / sets <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sets)
    assert broken["rows"] / sets > (0.1 if means_from else 0.0)
