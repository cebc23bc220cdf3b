"""How much general ability is left, and the bar on it."""

from __future__ import annotations

import pytest

from smallfirst.errors import ConfigError
from smallfirst.evaluation.ability_probe import Probe, ProbeResult, Question
from smallfirst.gate.check_result import ConfidenceLevel
from smallfirst.gate.retention import (
    Retention,
    RetentionByKind,
    check_retention,
    retention_from_probes,
    retention_from_scores,
)
from smallfirst.stats.intervals import Estimate

ONE = ConfidenceLevel(1)


def test_retention_is_the_ratio_of_the_means() -> None:
    found = retention_from_scores([1.0, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.75], prompts="four")
    assert (found.before, found.after, found.prompts) == (0.75, 0.5625, "four")
    assert (found.kept.value, found.kept.n) == (0.75, 4)
    assert found.kept.low < 0.75 < found.kept.high


def test_scores_of_other_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 2 and 1 scores"):
        retention_from_scores([1.0, 1.0], [1.0])


@pytest.mark.parametrize("before", [[], [0.0, 0.0], [float("nan")]])
def test_nothing_to_keep_is_refused(before: list[float]) -> None:
    with pytest.raises(ConfigError, match="no share of it can be kept"):
        retention_from_scores(before, before)


def test_the_bar_is_held_by_the_lower_end() -> None:
    found = Retention(kept=Estimate(value=0.95, low=0.9, high=0.99, n=200), before=0.6, after=0.57)
    line = check_retention(0.9, found, ONE)
    assert line.bar == "general ability kept at least 0.900"
    assert line.measured == "0.950 [0.900, 0.990] n=200, 0.600 before and 0.570 after"
    assert line.passed
    assert not check_retention(0.91, found, ONE).passed
    assert not check_retention(0.9, found, ConfidenceLevel(2)).passed


def test_few_prompts_that_all_score_alike_are_no_certainty() -> None:
    line = check_retention(0.9, retention_from_scores([0.5] * 20, [0.5] * 20), ONE)
    assert not line.passed
    assert line.measured.startswith("1.000 [0.839, 1.000] n=20")  # 20 / 23.8415


def test_a_gain_can_be_shown() -> None:
    found = Retention(kept=Estimate(value=1.2, low=1.1, high=1.3, n=200), before=0.5, after=0.6)
    assert check_retention(1.1, found, ONE).passed


def test_retention_that_was_not_measured_fails() -> None:
    line = check_retention(0.0, None, ONE)
    assert (line.passed, line.measured) == (False, "not measured")
    assert line.advice.startswith("smallfirst evaluate task.yaml")


PROBE = Probe(
    name="eight",
    questions=(
        *(Question(prompt=f"a{i}", answer=("x",), wrong=("y", "z", "w"), kind="four") for i in range(6)),
        *(Question(prompt=f"b{i}", answer=("x",), wrong=("y",), kind="two") for i in range(2)),
    ),
)


def result(*right: int) -> ProbeResult:
    answers = tuple(bool(value) for value in right)
    return ProbeResult(model="m", model_fingerprint="f", probe_fingerprint=PROBE.fingerprint(), right=answers)


def test_guessing_scores_nothing() -> None:
    # A wrong one of four scores -1/3, a wrong one of two -1.
    found = retention_from_probes(PROBE, result(1, 1, 1, 1, 1, 1, 1, 0), result(1, 1, 1, 0, 0, 0, 0, 0))
    assert found.before == pytest.approx((7 - 1) / 8)
    assert found.after == pytest.approx((3 - 3 / 3 - 2) / 8)
    assert found.kept is not None
    assert found.kept.value == pytest.approx(0.0)
    assert found.prompts == "eight"
    assert found.parts == (
        RetentionByKind(kind="four", n=6, n_before=6, n_after=3),
        RetentionByKind(kind="two", n=2, n_before=1, n_after=0),
    )


def test_right_answers_are_compared_pair_by_pair() -> None:
    before, after = result(1, 1, 1, 1, 1, 1, 1, 1), result(1, 1, 1, 1, 0, 0, 1, 1)
    found = retention_from_probes(PROBE, before, after)
    assert (found.right_before, found.right_after) == (before.accuracy, after.accuracy)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(-0.25)
    # Agresti and Min by hand: 10 pairs, two at -1, half a pair at each of +1 and -1: mean -0.2, E[d²] 0.3.
    assert found.difference.low == pytest.approx(-0.2 - 1.959964 * (0.26 / 10) ** 0.5, abs=1e-6)
    assert found.kept is not None
    assert found.kept.value == pytest.approx((6 - 2 / 3) / 8)


def test_a_model_that_guesses_has_nothing_to_keep() -> None:
    found = retention_from_probes(PROBE, result(1, 1, 0, 0, 0, 0, 1, 0), result(1, 1, 1, 1, 1, 1, 1, 1))
    assert found.kept is None
    line = check_retention(0.0, found, ONE)
    assert not line.passed
    assert line.measured == "the untouched model is no better than guessing: 0.083 before"  # (3 - 4/3 - 1) / 8
    assert "gate.retention_prompts" in line.advice


def test_results_of_other_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="the same prompts before and after"):
        retention_from_probes(
            PROBE, result(*[1] * 8), result(*[1] * 8).model_copy(update={"probe_fingerprint": "other"})
        )


def test_a_missed_bar_says_how_to_forget_less() -> None:
    low = Retention(kept=Estimate(value=0.5, low=0.4, high=0.6, n=72), before=0.6, after=0.3)
    assert "method lora" in check_retention(0.9, low, ONE).advice
    few = Retention(kept=Estimate(value=0.95, low=0.7, high=1.2, n=72), before=0.6, after=0.57)
    assert check_retention(0.9, few, ONE).advice.endswith("more (gate.retention_prompts)")
