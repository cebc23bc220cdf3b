"""Retention from scores and from probes, by hand."""

from __future__ import annotations

import pytest

from smallfirst.errors import ConfigError
from smallfirst.evaluation.retention import Probe, ProbeResult, Question, RetentionByKind, retention_from_probes

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


def test_few_questions_that_all_stay_right_leave_no_spread() -> None:
    found = retention_from_probes(PROBE, result(*[1] * 8), result(*[1] * 8)).kept
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 8)


def test_results_of_other_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="the same prompts before and after"):
        retention_from_probes(
            PROBE, result(*[1] * 8), result(*[1] * 8).model_copy(update={"probe_fingerprint": "other"})
        )


def test_a_base_model_that_guesses_has_nothing_to_keep() -> None:
    found = retention_from_probes(PROBE, result(1, 1, 0, 0, 0, 0, 1, 0), result(1, 1, 1, 1, 1, 1, 1, 1))
    assert found.kept is None
    assert found.before == pytest.approx((3 - 4 / 3 - 1) / 8)
