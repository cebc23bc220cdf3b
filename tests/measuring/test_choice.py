"""The choice of what goes live: by worth, on other rows than those that confirm it."""

import functools

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.measuring.choice import (
    FIRST,
    PLANS,
    Choice,
    WorthRule,
    choose_candidates,
    level_shares,
    shrunk_errors,
    unbeaten,
    would_pass,
)
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.measuring.gate import Gate

NAMES = ("words", "encoder", "tuned")


@functools.cache
def row(i: int, good: bool) -> EvaluatedRow:
    return evaluated_row(str(i), "a", "a" if good else "b")


def measured(name: str, right: list[bool], usd_per_1k: float = 1.0) -> Evaluation:
    rows = [row(i, good) for i, good in enumerate(right)]
    return evaluation_of(rows, candidate=name, cost_usd_per_1k=usd_per_1k)


def rated(name: str, n_right: int, n: int, usd_per_1k: float = 1.0) -> Evaluation:
    """A candidate that is right on the first `n_right` rows: what is difficult for one is so for all."""
    return measured(name, [i < n_right for i in range(n)], usd_per_1k)


def order(rule: WorthRule, *evaluations: Evaluation) -> list[str]:
    return [one.candidate for one in rule.order([Choice.alone(one) for one in evaluations])]


@pytest.mark.parametrize(
    ("words", "within", "first"),
    [
        (945, 0.01, "words"),  # half a point behind, and cheaper
        (898, 0.01, "tuned"),  # five points behind
        (898, 0.1, "words"),
        (898, 1.0, "words"),  # `smallest`
    ],
)
def test_the_cheapest_of_those_within_a_point_of_the_best_comes_first(words: int, within: float, first: str) -> None:
    candidates = rated("words", words, 1000, 0.001), rated("tuned", 950, 1000, 0.11)
    assert order(WorthRule(within), *candidates)[0] == first


def test_with_a_price_of_errors_the_least_expected_loss_comes_first() -> None:
    words, tuned = rated("words", 880, 1000, 0.0), rated("tuned", 950, 1000, 2.0)
    # Seven points cost $0.002 a request: they are worth it from 3 cents an error on.
    assert order(WorthRule(usd_per_wrong_answer=0.02), words, tuned)[0] == "words"
    assert order(WorthRule(usd_per_wrong_answer=0.04), words, tuned)[0] == "tuned"


def test_a_plan_and_a_candidate_alone_are_compared_by_the_same_loss() -> None:
    alone = Choice("tuned", 0.001, {str(i): float(i >= 90) for i in range(100)})
    # Half stays small, without an error; the large model is wrong on 4 % and costs 1 cent.
    plan = Choice("words", 0.005, {str(i): 0.04 * (i >= 50) for i in range(100)})
    errors = shrunk_errors([alone, plan])
    for price in (0.01, 0.1):
        losses = [one.usd + price * error for one, error in zip((alone, plan), errors, strict=True)]
        assert WorthRule(usd_per_wrong_answer=price).order([alone, plan])[0] is (alone, plan)[int(np.argmin(losses))]
    assert WorthRule(usd_per_wrong_answer=0.01).order([alone, plan])[0] is alone
    assert WorthRule(usd_per_wrong_answer=0.1).order([alone, plan])[0] is plan


def test_one_that_answered_fewer_rows_is_compared_on_these() -> None:
    """A language model answers selection rows alone, the others training rows out of fold as well."""
    words, tuned = rated("words", 700, 1000), rated("tuned", 900, 1000)
    easy = Choice("small", 0.001, {str(i): float(i < 4) for i in range(100)})  # wrong on 4 of 100 that all others know
    errors = shrunk_errors([Choice.alone(words), Choice.alone(tuned), easy])
    assert errors[:2] == pytest.approx([0.3, 0.1], abs=0.02)
    assert errors[2] > errors[1]  # 0.04 as measured, but on rows on which the others are never wrong
    assert order(WorthRule(), words, tuned)[0] == "tuned"


def test_those_that_are_expected_to_pass_come_first() -> None:
    words, tuned = rated("words", 84, 100, 0.1), rated("tuned", 92, 100, 9.0)
    cheap = [Choice.alone(one) for one in (words, tuned)]
    gate = Gate(accuracy_at_least=0.8)
    for n_test, names in ((1000, ["words", "tuned"]), (300, ["tuned", "words"])):
        expected = {one.candidate: would_pass(gate, one, n_test) for one in (words, tuned)}
        assert choose_candidates(cheap, WorthRule(1.0), expected=expected.__getitem__) == names
    # None: the most accurate first, whatever it costs.
    assert choose_candidates(cheap, WorthRule(1.0), expected=lambda _: False) == ["tuned", "words"]
    assert not would_pass(Gate(measures_at_most={"macro_f1": 0.5}), words, 1000)  # not measured
    assert not would_pass(gate, measured("words", []), 1000)
    assert choose_candidates([], WorthRule()) == []


@pytest.mark.parametrize("names", [("words",), ("words", "tuned"), NAMES])
def test_the_shares_of_the_level_sum_to_one_with_that_of_the_plans(names: tuple[str, ...]) -> None:
    shares = level_shares(names)
    assert sum(shares.values()) + PLANS == pytest.approx(1)
    assert shares[names[0]] == max(shares.values()) >= FIRST
    assert level_shares(()) == {}


def test_what_another_clearly_beats_at_no_higher_cost_does_not_go_live() -> None:
    words, tuned = rated("words", 160, 200), rated("tuned", 180, 200)
    assert unbeaten([words, tuned]) == ["tuned"]
    assert unbeaten([words, tuned.model_copy(update={"cost_usd_per_1k": 2.0})]) == ["words", "tuned"]
    assert unbeaten([words, rated("tuned", 162, 200)]) == ["words", "tuned"]  # two rows are chance
    assert unbeaten([]) == []


def test_nothing_is_chosen_that_another_beats_in_accuracy_and_cost() -> None:
    draw = np.random.default_rng(3)
    for _ in range(300):
        n = int(draw.integers(2, 5))
        options = [
            Choice(str(i), float(draw.choice([0.1, 0.11, 0.5, 3.0])), dict(enumerate(draw.integers(0, 2, 40) * 1.0)))
            for i in range(n)
        ]
        errors = {one.candidate: error for one, error in zip(options, shrunk_errors(options), strict=True)}
        for rule in (WorthRule(), WorthRule(0.1), WorthRule(usd_per_wrong_answer=float(draw.uniform(0.1, 9)))):
            ordered = rule.order(options)
            for at, one in enumerate(ordered):
                assert not any(
                    other.usd <= one.usd and errors[other.candidate] < errors[one.candidate] for other in ordered[at:]
                )


def test_the_chosen_candidates_figure_is_not_optimistic_and_no_false_one_passes_too_often() -> None:
    draw, gate, n, draws = np.random.default_rng(6), Gate(accuracy_at_least=0.8), 300, 80
    surplus, passed = [], 0
    for _ in range(draws):  # three candidates exactly at the minimum, so that each that passes should not
        chosen_by = [measured(name, (draw.random(100) < 0.8).tolist()) for name in NAMES]
        names = choose_candidates([Choice.alone(one) for one in chosen_by], WorthRule())
        on_test = {name: measured(name, (draw.random(n) < 0.8).tolist()) for name in NAMES}
        shares = level_shares(names)
        passing = [
            name for name in names if gate.check(on_test[name], large=None, comparisons_made=1 / shares[name]).passed
        ]
        passed += bool(unbeaten([on_test[name] for name in passing]))
        surplus.append(on_test[unbeaten([on_test[name] for name in names])[0]].accuracy.value - 0.8)
    assert passed / draws <= 0.025 + 0.025
    assert abs(np.mean(surplus)) < 0.008
