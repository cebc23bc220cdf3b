"""What is fitted in the time that is left, on made-up times."""

from __future__ import annotations

import pytest

from smallfirst.pipeline.ladder.plan import Rung, Step, epochs_in_time, plan_steps, why_left_out
from smallfirst.pipeline.ladder.times import TimeNeeded

QUICK = Rung("words", 10, TimeNeeded(8, after_s=2))
SMALL = Rung("tuned", 30, TimeNeeded(10, 10, 6, after_s=10))
LARGE = Rung("larger", 32, TimeNeeded(40, 60, 6, after_s=60))
LANGUAGE = Rung("small", 15, TimeNeeded(0, 120, 4, after_s=20))
"""In all 10, 80, 460 and 500 seconds."""


def names(left_s: float, *rungs: Rung) -> list[tuple[str, int]]:
    return [(step.name, step.epochs) for step in plan_steps(rungs, left_s)]


def test_all_are_fitted_quickest_first_where_time_suffices() -> None:
    found = plan_steps([LANGUAGE, LARGE, SMALL, QUICK], 2000)
    assert [step.name for step in found] == ["words", "tuned", "larger", "small"]
    assert found[1] == Step("tuned", 6, 1.15 * 80)


def test_what_promises_more_is_preferred_and_what_is_quick_comes_with_it() -> None:
    # Of 700 s: words (quick), the larger encoder, and the tuned one, but not the language model.
    assert names(700, LANGUAGE, LARGE, SMALL, QUICK) == [("words", 0), ("tuned", 6), ("larger", 6)]


def test_a_fine_tune_is_shortened_to_half_of_its_epochs_and_no_further() -> None:
    assert epochs_in_time(LARGE.time, 1.15 * 460) == 6
    assert epochs_in_time(LARGE.time, 1.15 * 459) == 5
    assert epochs_in_time(LARGE.time, 1.15 * 280) == 3
    assert epochs_in_time(LARGE.time, 1.15 * 279) is None
    assert epochs_in_time(QUICK.time, 1.15 * 10) == 0
    assert epochs_in_time(QUICK.time, 1.15 * 9) is None


def test_what_is_required_comes_before_what_promises_more() -> None:
    required = LANGUAGE._replace(required=True)
    assert names(600, required, LARGE) == [("small", 4)]


@pytest.mark.parametrize(("left_s", "wanted"), [(100.0, ["words", "new"]), (5.0, ["new"]), (0.0, [])])
def test_what_does_not_say_how_long_it_takes_is_last(left_s: float, wanted: list[str]) -> None:
    assert [name for name, _ in names(left_s, Rung("new", 50, None), QUICK)] == wanted


def test_what_is_left_out_is_told_with_the_time_that_would_include_it() -> None:
    # 1.15 × 460 s = 529 s; 300 s were left of 1200, and 5 % of the time that is added is kept, so 1441 s do.
    assert why_left_out(LARGE, 300, 1200) == "about 9 minutes, 5 minutes were left; --minutes 25 would include it"
