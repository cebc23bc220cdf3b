"""The choice of the candidate on selection rows, and its share of the gate's level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.gate import PLANS, Gate, cheapest_first, choose_candidate, count_comparisons
from smallfirst.gate.verdict import smallest_passing

Measured = Callable[..., Evaluation]
NAMES = ("words", "encoder", "tuned", "small")


def of(measured: Measured, name: str, right: int, n: int) -> Evaluation:
    return measured([True] * right + [False] * (n - right), candidate=name)


def test_the_smallest_that_would_pass_with_the_tests_rows_is_chosen(measured: Measured) -> None:
    gate = Gate(accuracy_at_least=0.8)
    on_selection = [of(measured, "words", 84, 100), of(measured, "small", 92, 100)]
    # 84 of 100 show 0.756; scaled to 1,000 rows 0.813, to 300 rows 0.79.
    assert choose_candidate(gate, on_selection, 1000) == "words"
    assert choose_candidate(gate, on_selection, 300) == "small"
    assert choose_candidate(Gate(accuracy_at_least=0.99), on_selection, 1000) == "small"  # none
    assert choose_candidate(Gate(measures_at_most={"macro_f1": 0.5}), on_selection, 1000) == "small"
    assert choose_candidate(gate, [], 1000) is None


def test_the_cheapest_come_first_and_those_of_equal_cost_by_size(measured: Measured) -> None:
    costs = {"words": 1.2, "encoder": 1.0, "tuned": 5.0, "small": 2.0}
    priced = [of(measured, name, 1, 2).model_copy(update={"cost_usd_per_1k": cost}) for name, cost in costs.items()]
    assert [one.candidate for one in cheapest_first(priced)] == ["words", "encoder", "small", "tuned"]
    assert cheapest_first([]) == []


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("words", {"words": 5 / 3, "encoder": 15, "tuned": 15, "small": 15}),
        ("small", {"words": 15, "encoder": 15, "tuned": 15, "small": 5 / 3}),
        (None, dict.fromkeys(NAMES, 5)),
    ],
)
def test_the_shares_of_the_level_sum_to_one_with_those_of_the_plans(
    first: str | None, expected: dict[str, float]
) -> None:
    found = count_comparisons(NAMES, first)
    assert found == pytest.approx(expected)
    assert sum(1 / n for n in found.values()) + sum(PLANS) == pytest.approx(1)
    assert count_comparisons(("small",), "small") == {"small": pytest.approx(1.25)}


def test_the_chosen_candidates_figure_is_not_optimistic_and_no_false_one_passes_too_often(measured: Measured) -> None:
    draw, gate, n, draws = np.random.default_rng(6), Gate(accuracy_at_least=0.8), 300, 120
    surplus: dict[str, list[float]] = {"chosen": [], "smallest passing": []}
    passed = 0
    for _ in range(draws):  # four candidates exactly at the minimum, so that each that passes should not
        on_selection = [of(measured, name, int(draw.binomial(100, 0.8)), 100) for name in NAMES]
        on_test = {name: of(measured, name, int(draw.binomial(n, 0.8)), n) for name in NAMES}
        chosen = choose_candidate(gate, on_selection, n)
        assert chosen
        comparisons = count_comparisons(NAMES, chosen)
        verdicts = [gate.check(on_test[name], large=None, comparisons_made=comparisons[name]) for name in NAMES]
        passed += smallest_passing(verdicts, chosen) is not None
        surplus["chosen"].append(on_test[chosen].accuracy.value - 0.8)
        best = next((name for name in NAMES if on_test[name].accuracy.low > 0.79), None)  # few pass
        surplus["smallest passing"] += [on_test[best].accuracy.value - 0.8] if best else []
    assert passed / draws <= 0.025 + 0.02
    assert abs(np.mean(surplus["chosen"])) < 0.005
    assert np.mean(surplus["smallest passing"]) > 0.03
