"""The check of general ability."""

from __future__ import annotations

import pytest
from fixtures.gate import evaluation

from smallfirst.evaluation.retention import Retention
from smallfirst.gate.check_result import CheckInputs, CheckResult, ConfidenceLevel
from smallfirst.gate.metrics import RetentionThresholds, check_retention
from smallfirst.stats.intervals import Estimate

ONE = ConfidenceLevel(1)


ALL = Estimate(value=0.6, low=0.5, high=0.7, n=200)


def retention(kept: tuple[float, float, float] | None, *, n: int = 200, before: float = 0.6) -> Retention:
    share = None if kept is None else Estimate(**dict(zip(("value", "low", "high"), kept, strict=True)), n=n)
    figures = {"right_before": ALL, "right_after": ALL, "difference": ALL}
    return Retention(kept=share, before=before, after=0.57, prompts="general", **figures)


def check(minimum: float, found: Retention | None, level: ConfidenceLevel = ONE) -> CheckResult:
    inputs = CheckInputs(evaluation([True]), level, retention=found)
    (result,) = check_retention(RetentionThresholds(retention_at_least=minimum), inputs)
    return result


def test_the_lower_end_decides() -> None:
    found = retention((0.95, 0.9, 0.99))
    result = check(0.9, found)
    assert result.requirement == "general ability kept at least 0.900"
    assert result.measured == "0.950 [0.900, 0.990] n=200, 0.600 before and 0.570 after"
    assert result.passed
    assert not check(0.91, found).passed
    assert not check(0.9, found, ConfidenceLevel(2)).passed
    assert check(1.1, retention((1.2, 1.1, 1.3))).passed


def test_few_prompts_that_all_score_alike_are_no_certainty() -> None:
    result = check(0.9, retention((1.0, 1.0, 1.0), n=20))
    assert not result.passed
    assert result.measured.startswith("1.000 [0.839, 1.000] n=20")  # 20 / 23.8415


@pytest.mark.parametrize(
    ("found", "measured", "advice"),
    [
        (None, "not measured", "smallfirst evaluate task.yaml"),
        (
            retention(None, before=0.083),
            "the base model is no better than guessing: 0.083 before",
            "name prompts that it can answer (gate.retention_prompts)",
        ),
    ],
)
def test_without_a_measured_share_it_fails(found: Retention | None, measured: str, advice: str) -> None:
    result = check(0.0, found)
    assert (result.passed, result.measured) == (False, measured)
    assert result.advice.startswith(advice)


def test_a_failed_check_says_how_to_forget_less() -> None:
    assert "method lora" in check(0.9, retention((0.5, 0.4, 0.6), n=72)).advice
    few = check(0.9, retention((0.95, 0.7, 1.2), n=72))
    assert few.advice.endswith("more (gate.retention_prompts)")
