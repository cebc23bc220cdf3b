"""Below the threshold: what stays small, what goes on, and the evidence that sending it on takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from fixtures.certificates import cascade
from scipy.stats import binom

from smallfirst.base.stats.intervals import mid_p_value, paired_difference
from smallfirst.routing.certificate.certificate import BelowAction, BelowRule, decide_below_threshold
from smallfirst.routing.certificate.outcomes import CascadeData


def rows(small: list[bool], large: list[bool], confidence: list[float] | None = None, **more: Any) -> CascadeData:
    found = confidence if confidence is not None else [(i + 0.5) / len(small) for i in range(len(small))]
    return cascade(found, small, large_right=np.array(large), **more)


ALONE = BelowRule()


class Below(NamedTuple):
    action: BelowAction
    why: str


def decide(data: CascadeData, rule: BelowRule = ALONE, **more: bool) -> Below:
    return Below(*decide_below_threshold(data, np.zeros(data.n, dtype=bool), rule, **more))


PERSON = BelowRule(person=True)
PASSED_ON = BelowRule(alone=False)


def answers(more: int, less: int, n: int = 80, **others: Any) -> CascadeData:
    """Data of `n` rows: on how many only the large model is right, and on how many only the small one."""
    return rows([False] * more + [True] * (n - more), [True] * (n - less) + [False] * less, **others)


def test_mid_p_is_the_one_sided_p_value_less_half_the_chance_of_what_was_seen() -> None:
    # Of 12 rows on which only one is right large has 10: P(>= 11) = 13/4096, P(10) = 66/4096.
    assert mid_p_value(10, 2) == pytest.approx((13 + 66 / 2) / 4096)
    assert mid_p_value(5, 0) == pytest.approx(0.5**6)
    assert mid_p_value(0, 0) == 1.0
    assert mid_p_value(0, 3) == pytest.approx(1 - 0.5**4)


def test_a_large_model_that_is_shown_to_be_better_gets_all_that_is_below() -> None:
    data = answers(24, 12)
    found, difference = decide(data), paired_difference(data.large_right.tolist(), data.right[0].tolist())
    assert found.action == "escalate"
    assert found.why == (
        "on 80 calibration rows below the threshold large is right on 68, small on 56 "
        f"(difference {difference}, one-sided p = 0.024): shown to be better"
    )


def test_a_lead_alone_sends_nothing_on() -> None:
    found = decide(answers(24, 16))  # mid-p 0.11
    assert found.action == "keep"
    assert found.why.endswith(": not shown to be better, so they stay small")


def test_accepted_rows_say_nothing_about_what_is_below() -> None:
    data = answers(24, 12)
    assert decide_below_threshold(data, ~data.right[0], ALONE)[0] == "keep"  # where large alone is right
    everything = decide_below_threshold(data, np.ones(80, dtype=bool), ALONE)
    assert everything == ("keep", "no calibration row falls below the threshold, so they stay small")


@pytest.mark.parametrize("n", [20, 40, 80, 300])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_requests_are_sent_on_without_a_gain_in_at_most_5_of_100_draws(n: int, rate: float) -> None:
    chance = 0.0  # exact, where the models differ on a row at this rate and each is then right as often
    for differ in range(n + 1):
        sent = sum(binom.pmf(k, differ, 0.5) for k in range(differ + 1) if mid_p_value(differ - k, k) <= 0.05)
        chance += binom.pmf(differ, n, rate) * sent
    assert 0 < chance <= 0.05


def test_the_gain_must_be_worth_the_large_models_price() -> None:
    better = answers(36, 3)  # 0.41 [0.31, …] better, and an answer costs $0.10
    assert decide(better, BelowRule(usd_per_wrong_answer=1.0)).action == "escalate"  # pays from 0.1 on
    assert "shown to be better and worth its price at $1 a wrong" in decide(better, BelowRule(True, False, 1.0)).why
    dear = decide(better, BelowRule(usd_per_wrong_answer=0.3))  # from 0.33 on
    assert dear.action == "keep"
    assert dear.why.endswith(": not shown to be better and worth its price at $0.3 a wrong answer, so they stay small")


def test_a_person_gets_what_no_model_is_shown_to_be_good_at() -> None:
    assert decide(answers(24, 12), PERSON).action == "escalate"
    worse = decide(rows([True] * 80, [False] * 80), PERSON)
    assert worse.action == "abstain"
    assert worse.why.endswith(": not shown to be better, so they go to a person's queue")


def test_without_a_candidate_that_passed_alone_everything_goes_on() -> None:
    found = decide(rows([True] * 80, [False] * 80), PASSED_ON)
    assert found.action == "escalate"
    assert found.why.startswith("only certified answers stay small, the others go on; on 80 calibration rows")
    nobody = answers(24, 12, asked=np.zeros(80, dtype=bool))
    assert decide(nobody, PASSED_ON).action == "escalate"
    to_a_person = decide(nobody, BelowRule(alone=False, person=True))
    assert to_a_person.action == "abstain"
    assert to_a_person.why.endswith("without a large model the others wait for a person")
    assert decide(answers(24, 12), BelowRule(alone=False, person=True)).action == "escalate"


def test_a_large_model_that_was_not_measured_there_gets_nothing_and_that_is_said() -> None:
    found = decide(answers(24, 12, asked=np.zeros(80, dtype=bool)))
    assert (found.action, found.why) == ("keep", "the large model was not measured, so they stay small")
    by_large = decide(answers(24, 12, labels="large"))
    assert by_large.action == "keep"
    assert by_large.why.startswith("below the threshold only the large model says what is right")


def test_nothing_stays_small_where_a_limit_on_the_accuracy_loss_does_not_cover_it() -> None:
    found = decide(answers(24, 16), may_keep=False)
    assert found.action == "escalate"
    assert found.why.endswith("they stay small; but the limit on the accuracy loss is not shown where they do")
    assert decide(answers(24, 16), PERSON, may_keep=False).action == "abstain"  # a person loses nothing
