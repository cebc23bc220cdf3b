"""How much general ability is left, and the bar on it."""

from __future__ import annotations

import pytest

from smallfirst.bars.line import Level
from smallfirst.bars.retention import Retention, retained, retention_of
from smallfirst.errors import ConfigError
from smallfirst.stats import Estimate

ONE = Level(1)


def test_retention_is_the_ratio_of_the_means() -> None:
    found = retention_of([1.0, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.75], prompts="four")
    assert (found.before, found.after, found.prompts) == (0.75, 0.5625, "four")
    assert (found.kept.value, found.kept.n) == (0.75, 4)
    assert found.kept.low < 0.75 < found.kept.high


def test_scores_of_other_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 2 and 1 scores"):
        retention_of([1.0, 1.0], [1.0])


@pytest.mark.parametrize("before", [[], [0.0, 0.0], [float("nan")]])
def test_nothing_to_keep_is_refused(before: list[float]) -> None:
    with pytest.raises(ConfigError, match="no share of it can be kept"):
        retention_of(before, before)


def test_the_bar_is_held_by_the_lower_end() -> None:
    found = Retention(kept=Estimate(value=0.95, low=0.9, high=0.99, n=200), before=0.6, after=0.57)
    line = retained(0.9, found, ONE)
    assert line.bar == "general ability kept at least 0.900"
    assert line.measured == "0.950 [0.900, 0.990] n=200, 0.600 before and 0.570 after"
    assert line.passed
    assert not retained(0.91, found, ONE).passed
    assert not retained(0.9, found, Level(2)).passed


def test_few_prompts_that_all_score_alike_are_no_certainty() -> None:
    line = retained(0.9, retention_of([0.5] * 20, [0.5] * 20), ONE)
    assert not line.passed
    assert line.measured.startswith("1.000 [0.839, 1.000] n=20")  # 20 / 23.8415


def test_a_gain_can_be_shown() -> None:
    found = Retention(kept=Estimate(value=1.2, low=1.1, high=1.3, n=200), before=0.5, after=0.6)
    assert retained(1.1, found, ONE).passed


def test_retention_that_was_not_measured_fails() -> None:
    line = retained(0.0, None, ONE)
    assert (line.passed, line.advice) == (False, "score general prompts before and after training")
