"""What audits watch of a gate: its accuracy, with room for the large model's own mistakes where that judges."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.gate import evaluation

from smallfirst.gate.audited import audited_accuracy
from smallfirst.gate.gate import Gate
from smallfirst.stats.intervals import upper_bound

SMALL = evaluation([True] * 170 + [False] * 30)
LARGE = evaluation([False] * 4 + [True] * 190 + [False] * 6, candidate="large")
"""It is wrong on ten rows, on four of which the small model is right."""


def test_a_person_may_call_wrong_what_the_gate_allows_and_the_large_model_what_it_gets_wrong_itself() -> None:
    found = audited_accuracy(Gate(accuracy_at_least=0.8), SMALL, LARGE)
    assert found is not None
    assert found.words == "at most 20 % of all small answers wrong"
    assert found.limit_for("person") == pytest.approx(0.2)
    assert found.limit_for("large") == pytest.approx(0.2 + upper_bound(4, 200, confidence=0.95))


def test_beside_the_large_model_as_much_may_be_wrong_as_that_has_and_the_margin() -> None:
    gate = Gate(accuracy_at_least=None, not_worse_than_large_by=0.05)
    found = audited_accuracy(gate, SMALL, LARGE)
    assert found is not None
    by_person = 0.05 + upper_bound(10, 200, confidence=0.975)
    assert found.by_person == pytest.approx(by_person)
    assert found.by_large == pytest.approx(by_person + upper_bound(4, 200, confidence=0.975))
    assert "at most 5 points less accurate than the large model" in found.words
    assert audited_accuracy(gate, SMALL, None) is None


@pytest.mark.parametrize(
    "thresholds", [{"macro_f1_at_least": 0.8}, {"accuracy_at_least": 1.0}, {"accuracy_at_least": 0.0}]
)
def test_no_audit_can_break_another_metric_or_a_limit_of_all_or_nothing(thresholds: dict[str, Any]) -> None:
    assert audited_accuracy(Gate(**{"accuracy_at_least": None, **thresholds}), SMALL, LARGE) is None


def test_where_the_large_model_was_not_measured_only_a_person_can_judge() -> None:
    found = audited_accuracy(Gate(accuracy_at_least=0.8), SMALL, None)
    assert found is not None
    assert (found.by_person, found.by_large) == (pytest.approx(0.2), None)
