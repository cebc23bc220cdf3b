"""Below the threshold: what stays small, what goes on, and the evidence that sending it on takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fixtures.certificates import cascade
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.routing.certificate.below_threshold import (
    BelowRule,
    BelowThreshold,
    decide_below_threshold,
    mid_p_value,
)
from smallfirst.routing.certificate.outcomes import CascadeData


def rows(small: list[bool], large: list[bool], confidence: list[float] | None = None, **more: Any) -> CascadeData:
    found = confidence if confidence is not None else [(i + 0.5) / len(small) for i in range(len(small))]
    return cascade(found, small, large_right=np.array(large), **more)


ALONE = BelowRule()


def decide(data: CascadeData, rule: BelowRule = ALONE, *, floor: float | None = None, **more: bool) -> BelowThreshold:
    return decide_below_threshold(data, np.zeros(data.n, dtype=bool), rule, top=1.0, floor=floor, **more)


def actions(found: BelowThreshold) -> list[str]:
    return [band.action for band in found.bands]


# Four bands of 20: large better, worse, alike, better.
SMALL = [False] * 20 + [True] * 20 + [True] * 10 + [False] * 10 + [False] * 20
LARGE = [True] * 20 + [False] * 20 + [False] * 10 + [True] * 10 + [True] * 20
PERSON = BelowRule(person=True)
PASSED_ON = BelowRule(alone=False)


def answers(*bands: tuple[int, int], n: int = 20) -> CascadeData:
    """Data of bands of `n` rows: on how many only the large model is right, and on how many only the small one."""
    small = [right for more, less in bands for right in [False] * more + [True] * (n - more)]
    large = [right for more, less in bands for right in [True] * (n - less) + [False] * less]
    return rows(small, large)


def test_mid_p_is_the_one_sided_p_value_less_half_the_chance_of_what_was_seen() -> None:
    # Of 12 rows on which only one is right large has 10: P(>= 11) = 13/4096, P(10) = 66/4096.
    assert mid_p_value(10, 2) == pytest.approx((13 + 66 / 2) / 4096)
    assert mid_p_value(5, 0) == pytest.approx(0.5**6)
    assert mid_p_value(0, 0) == 1.0
    assert mid_p_value(0, 3) == pytest.approx(1 - 0.5**4)


def test_the_large_model_gets_a_band_where_it_is_shown_to_be_better_and_no_other() -> None:
    found = decide(rows(SMALL, LARGE))
    # Over all 50 against 30, mid-p 0.016: shown. Its lead is in the first band and the last; the third is alike.
    assert [(band.n, band.small_right, band.large_right, band.action) for band in found.bands] == [
        (20, 0, 20, "escalate"),
        (20, 20, 0, "keep"),
        (20, 10, 10, "keep"),
        (20, 0, 20, "escalate"),
    ]
    assert [band.low for band in found.bands] == [0.0, 20.5 / 80, 40.5 / 80, 60.5 / 80]
    assert [band.high for band in found.bands[:-1]] == [band.low for band in found.bands[1:]]
    assert found.bands[-1].high == 1.0
    # McNemar on 20 against 0: 2 / 2**20
    assert found.bands[0].p_value == 2 / 2**20
    assert found.bands[0].extra_usd_per_1k == pytest.approx(100.0)
    assert found.action == "escalate"
    assert found.why == (
        "on 80 calibration rows below the threshold large is right on 50, small on 30 "
        f"(difference {found.difference}, one-sided p = 0.013): shown to be better at confidences of 0.00 to 0.26, "
        "0.76 to 1.00 (large is right on 40, small on 0 of 40); the others stay small"
    )


def test_a_lead_alone_sends_nothing_on() -> None:
    found = decide(answers((6, 4), (6, 4), (6, 4), (6, 4)))  # 24 against 16: mid-p 0.11
    assert (found.action, actions(found)) == ("keep", ["keep"] * 4)
    assert found.why.endswith(": not shown to be better, so they stay small")


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        ([(8, 0), (3, 3), (1, 4), (1, 4)], 1),  # shown in the least confident band alone
        ([(8, 0), (7, 1), (1, 3), (1, 9)], 2),
        ([(4, 0), (4, 0), (0, 4), (0, 5)], 2),  # four rows can show nothing: passed over, and 8 against 0 is shown
        ([(5, 3), (9, 0), (0, 4), (0, 5)], 0),  # the first region is not shown, so no later one is looked at
        ([(6, 3), (6, 3), (6, 3), (6, 3)], 4),  # only all together
    ],
)
def test_the_largest_region_that_is_shown_is_sent_on(bands: list[tuple[int, int]], expected: int) -> None:
    assert actions(decide(answers(*bands))) == ["escalate"] * expected + ["keep"] * (4 - expected)


def test_requests_are_sent_on_without_a_gain_in_at_most_5_of_100_draws() -> None:
    random, draws, n_sent = np.random.default_rng(0), 2000, 0
    for _ in range(draws):
        only_one, large_has_it = random.random(80) < 0.3, random.random(80) < 0.5
        found = decide(rows((~(only_one & large_has_it)).tolist(), (~(only_one & ~large_has_it)).tolist()))
        n_sent += "escalate" in actions(found)
    assert 0 < n_sent / draws <= 0.05


def test_the_gain_must_be_worth_the_large_models_price() -> None:
    better = answers((12, 0), (10, 1), (8, 1), (6, 1))  # 36 against 3 of 80: 0.41 [0.31, …] better, one answer $0.10
    assert actions(decide(better)) == ["escalate"] * 4
    assert actions(decide(better, BelowRule(usd_per_wrong_answer=1.0))) == ["escalate"] * 4  # pays from 0.1 on
    dear = decide(better, BelowRule(usd_per_wrong_answer=0.3))  # from 0.33 on, which the first band alone shows
    assert actions(dear) == ["escalate", "escalate", "keep", "keep"]
    assert "shown to be better and worth its price at $0.3 a wrong answer at confidences of" in dear.why
    never = decide(better, BelowRule(usd_per_wrong_answer=0.1))  # right on every row would be worth it, and no less
    assert never.why.endswith(": not shown to be better and worth its price at $0.1 a wrong answer, so they stay small")


def test_a_person_gets_what_no_model_is_shown_to_be_good_at() -> None:
    found = decide(rows(SMALL, LARGE), PERSON)
    assert actions(found) == ["escalate", "abstain", "abstain", "escalate"]
    worse = decide(rows([True] * 80, [False] * 80), PERSON)
    assert worse.action == "abstain"
    assert worse.why.endswith(": not shown to be better, so they go to a person's queue")


def test_without_a_candidate_that_passed_alone_everything_goes_on() -> None:
    found = decide(rows([True] * 80, [False] * 80), PASSED_ON)
    assert (found.action, actions(found)) == ("escalate", ["escalate"] * 4)
    assert found.why.startswith("only certified answers stay small, the others go on; on 80 calibration rows")
    nobody = rows(SMALL, LARGE, asked=np.zeros(80, dtype=bool))
    assert decide(nobody, PASSED_ON).action == "escalate"
    to_a_person = decide(nobody, BelowRule(alone=False, person=True))
    assert (to_a_person.action, to_a_person.bands) == ("abstain", ())
    assert to_a_person.why.endswith("without a large model the others wait for a person")
    assert decide(rows(SMALL, LARGE), BelowRule(alone=False, person=True)).action == "escalate"


def test_a_large_model_that_was_not_measured_there_gets_nothing_and_that_is_said() -> None:
    found = decide(rows(SMALL, LARGE, asked=np.zeros(80, dtype=bool)))
    assert (found.action, found.why) == ("keep", "the large model was not measured, so they stay small")
    by_large = decide(rows(SMALL, LARGE, labels="large"))
    assert by_large.action == "keep"
    assert by_large.why.startswith("below the threshold only the large model says what is right")


def test_a_limit_on_the_accuracy_loss_allows_keeping_down_to_its_floor_without_a_gap() -> None:
    always = rows([True] * 80, [False] * 80)
    found = decide(always, floor=0.5)
    assert actions(found) == ["escalate", "escalate", "keep", "keep"]
    assert found.action == "escalate"
    found = decide(always, floor=0.0)
    assert actions(found) == ["keep"] * 4
    gap = decide(rows(SMALL, LARGE), floor=0.0)
    assert actions(gap) == ["escalate"] * 4


def test_a_guarantee_that_never_escalates_keeps_everything() -> None:
    found = decide(rows(SMALL, LARGE), never_escalates=True)
    assert actions(found) == ["keep"] * 4
    assert found.action == "keep"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from([0.1, 0.2, 0.3, 0.9])), min_size=1, max_size=90)
)
def test_bands_part_what_is_below_the_threshold(drawn: list[tuple[bool, bool, float]]) -> None:
    small, large, scores = zip(*drawn, strict=True)
    data = rows(list(small), list(large), list(scores))
    kept = data.confidence[0] >= 0.9
    found = decide_below_threshold(data, kept, BelowRule(), top=0.9, floor=None)
    assert sum(band.n for band in found.bands) == (~kept).sum()
    assert sum(band.large_right for band in found.bands) == (data.large_right & ~kept).sum()
    assert len(found.bands) <= 4
