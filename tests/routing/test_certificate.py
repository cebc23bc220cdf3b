"""The certificate: thresholds by hand, and the promise kept in simulation as often as it says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.evaluation.evaluation import EvaluatedRow, Evaluation
from smallfirst.routing.certificate import NOTHING_KEPT, Promise, Search, certify, search_threshold
from smallfirst.stats import Estimate, paired_difference, upper_bound, wilson

FIVE_PERCENT = Promise()


def measured(
    candidate: str,
    correct: Sequence[bool],
    confidence: Sequence[float | None] | None = None,
    *,
    cost_usd: float = 0.001,
    first: int = 0,
) -> Evaluation:
    """An evaluation of rows numbered from `first`."""
    rows = tuple(
        EvaluatedRow(
            key=f"row-{number}",
            text=f"text {number}",
            gold="a",
            answer="a" if right else "b",
            correct=right,
            confidence=confidence[number - first] if confidence else None,
            stage=candidate,
            certified=False,
            latency_ms=1.0,
            cost_usd=cost_usd,
        )
        for number, right in enumerate(correct, start=first)
    )
    share = wilson(sum(correct), len(correct))
    return Evaluation(
        candidate=candidate,
        model=candidate,
        task="t",
        split="calibration",
        dataset_fingerprint="d",
        rows=rows,
        accuracy=share,
        measures={"macro_f1": share},
        cost_usd_per_1k=1000 * cost_usd,
        p50_ms=1.0,
        p95_ms=1.0,
        requests_per_s=None,
    )


def falling(n: int) -> list[float]:
    """Distinct confidences from 1 downwards."""
    return [1 - i / (2 * n) for i in range(n)]


@pytest.mark.parametrize("n", [59, 60])
def test_fifty_nine_rows_without_an_error_are_enough_for_five_percent(n: int) -> None:
    confidence = falling(n)
    assert search_threshold(confidence, [True] * n, FIVE_PERCENT) == Search(
        threshold=confidence[-1], n_kept=n, errors_kept=0
    )


def test_fifty_eight_are_not() -> None:
    found = search_threshold(falling(58), [True] * 58, FIVE_PERCENT)
    assert found == Search(threshold=NOTHING_KEPT, n_kept=0, errors_kept=0)


def test_one_error_among_ninety_three_is_shown_and_among_ninety_two_is_not() -> None:
    # 0.95**93 + 93 * 0.05 * 0.95**92 = 0.04999 and with 92 rows 0.0521; the error is the least sure row.
    found = [search_threshold(falling(n), [True] * (n - 1) + [False], FIVE_PERCENT) for n in (93, 92)]
    assert [(search.n_kept, search.errors_kept) for search in found] == [(93, 1), (91, 0)]


def test_the_first_failure_stops_the_search() -> None:
    # 60 right, 2 wrong (fails: two errors in 62), then 200 right, which would have passed again.
    correct = [True] * 60 + [False] * 2 + [True] * 58
    assert search_threshold(falling(120), correct, FIVE_PERCENT) == Search(
        threshold=falling(120)[59], n_kept=60, errors_kept=0
    )
    longer = correct + [True] * 200
    assert upper_bound(2, len(longer)) < 0.05
    # With more rows the search starts where half of them are kept, past the two errors.
    assert search_threshold(falling(320), longer, FIVE_PERCENT).n_kept == 320


def test_where_the_search_begins_does_not_depend_on_which_answers_are_right() -> None:
    # The first 100 of 200 are tried first, and 11 errors in them show nothing, however good the surest 60 are.
    correct = [True] * 80 + [False] * 20 + [True] * 100
    assert search_threshold(falling(200), correct, FIVE_PERCENT).n_kept == 0


def test_rows_of_equal_confidence_are_kept_together_or_not_at_all() -> None:
    confidence = [0.9] * 58 + [0.8] * 10 + [0.7] * 10
    correct = [True] * 68 + [False] * 10
    # 59 rows would do, but the 59th shares its confidence with nine others.
    assert search_threshold(confidence, correct, FIVE_PERCENT) == Search(threshold=0.8, n_kept=68, errors_kept=0)
    # One wrong row among the ten is too many for 68, so none of them is kept, nor the 58 alone.
    correct[60] = False
    assert search_threshold(confidence, correct, FIVE_PERCENT).n_kept == 0


def test_the_order_of_rows_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    confidence, correct = draw.random(200), draw.random(200) < 0.99
    order = draw.permutation(200)
    assert search_threshold(confidence, correct, FIVE_PERCENT) == search_threshold(
        confidence[order], correct[order], FIVE_PERCENT
    )


def test_too_few_labels_are_refused_with_how_many_it_takes() -> None:
    found = certify(measured("small", [True] * 40, falling(40)), None, FIVE_PERCENT, model_fingerprint="m")
    assert not found.issued
    assert found.why == "too few labels: 40 calibration rows; even without an error this promise needs 59"
    assert (found.threshold, found.n_kept, found.error_bound) == (NOTHING_KEPT, 0, 1.0)
    assert found.coverage == wilson(0, 40)


def test_a_promise_that_is_not_shown_is_refused_with_what_was_seen() -> None:
    small = measured("small", [True, False] * 50, falling(100))
    found = certify(small, None, FIVE_PERCENT, model_fingerprint="m")
    assert found.why == (
        "not shown: with 100 calibration rows (50 of all answers wrong) no threshold keeping 59 or more answers shows "
        "at most 5 % wrong; label more rows, or promise less"
    )


def test_a_promise_that_is_shown_says_on_what_it_rests() -> None:
    small = measured("small", [True] * 99 + [False], falling(100))
    promise = Promise(at_most_wrong=0.075, confidence=0.975)
    found = certify(small, None, promise, model_fingerprint="m", temperature=1.5)
    # Clopper and Pearson: 0.0545 is the rate at which at most 1 error in 100 has probability 0.025.
    assert found.why == (
        "at most 7.5 % of kept answers wrong (97.5 %): 1 of 100 kept calibration answers were wrong, so at most 0.054"
    )
    assert (found.issued, found.n_kept, found.errors_kept, found.n_labels) == (True, 100, 1, 100)
    assert found.error_bound == upper_bound(1, 100, confidence=0.975)
    assert (found.promised_error, found.confidence, found.temperature) == (0.075, 0.975, 1.5)
    assert (found.model_fingerprint, found.dataset_fingerprint) == ("m", "d")


def test_doubtful_requests_are_escalated_where_the_large_model_was_right_more_often() -> None:
    # 60 sure and right, then 10 doubtful: small right on 2, large on 6 (5 that small misses, and 1 of its own 2).
    ours = [True] * 60 + [True, True] + [False] * 8
    theirs = [False] * 60 + [True, False] + [True] * 5 + [False] * 3
    found = certify(
        measured("small", ours, falling(60) + [0.1] * 10),
        measured("large", theirs),
        FIVE_PERCENT,
        model_fingerprint="m",
    )
    assert (found.n_kept, found.below) == (60, "escalate")
    assert found.below_difference == paired_difference(theirs[60:], ours[60:])
    # McNemar on 5 against 1: 2 * (1 + 6) / 2**6
    assert found.below_why == (
        "on 10 calibration rows below the threshold large is right on 6, small on 2 "
        f"(difference {found.below_difference}, McNemar p = 0.219)"
    )


@pytest.mark.parametrize("large_right", [0, 2])
def test_doubtful_requests_stay_small_where_the_large_model_is_no_better(large_right: int) -> None:
    ours = [True] * 60 + [True, True] + [False] * 8
    theirs = [True] * 60 + [False] * (10 - large_right) + [True] * large_right
    found = certify(
        measured("small", ours, falling(60) + [0.1] * 10),
        measured("large", theirs),
        FIVE_PERCENT,
        model_fingerprint="m",
    )
    assert found.below == "keep"
    assert found.below_why.endswith(": sending them on would cost more and help nobody")
    assert isinstance(found.below_difference, Estimate)


def test_a_large_model_that_was_not_measured_is_trusted() -> None:
    small = measured("small", [True] * 60 + [False] * 10, falling(60) + [0.1] * 10)
    found = certify(small, None, FIVE_PERCENT, model_fingerprint="m")
    assert (found.below, found.below_why, found.below_difference) == (
        "escalate",
        "the large model was not measured, so it is trusted",
        None,
    )


def test_a_large_model_measured_on_other_rows_only_is_trusted_and_that_is_said() -> None:
    small = measured("small", [True] * 60 + [False] * 10, falling(60) + [0.1] * 10)
    found = certify(small, measured("large", [True] * 60), FIVE_PERCENT, model_fingerprint="m")
    assert (found.below, found.below_why) == (
        "escalate",
        "the large model was not measured on rows below the threshold, so it is trusted",
    )


def test_if_everything_is_kept_nothing_is_below() -> None:
    found = certify(
        measured("small", [True] * 60, falling(60)), measured("large", [True] * 60), FIVE_PERCENT, model_fingerprint="m"
    )
    assert (found.below, found.below_why) == ("escalate", "no calibration row falls below the threshold")


def test_an_answer_without_confidence_counts_as_no_confidence_at_all() -> None:
    found = certify(
        measured("small", [True] * 60 + [False] * 5, [*falling(60), *[None] * 5]),
        None,
        FIVE_PERCENT,
        model_fingerprint="m",
    )
    assert found.n_kept == 60


def test_the_curve_begins_all_large_and_ends_all_small() -> None:
    draw = np.random.default_rng(5)
    ours, theirs = (draw.random(150) < 0.8).tolist(), (draw.random(150) < 0.9).tolist()
    small = measured("small", ours, draw.random(150).tolist(), cost_usd=0.001)
    large = measured("large", theirs, cost_usd=0.02)
    curve = certify(small, large, FIVE_PERCENT, model_fingerprint="m").curve
    assert (curve[0].threshold, curve[0].n_kept, curve[0].errors_kept) == (NOTHING_KEPT, 0, 0)
    assert curve[0].routed_accuracy == sum(theirs) / 150
    assert curve[0].routed_cost_usd_per_1k == pytest.approx(21.0)  # thrown-away drafts are paid too
    assert (curve[-1].n_kept, curve[-1].errors_kept) == (150, 150 - sum(ours))
    assert curve[-1].routed_accuracy == sum(ours) / 150
    assert curve[-1].routed_cost_usd_per_1k == pytest.approx(1.0)
    assert curve[-1].threshold == min(row.confidence or 0.0 for row in small.rows)


def test_every_point_of_the_curve_is_what_its_threshold_gives() -> None:
    draw = np.random.default_rng(6)
    ours, theirs = draw.random(90) < 0.8, draw.random(90) < 0.9
    said = draw.choice([0.2, 0.5, 0.7, 0.9, 1.0], 90)  # many ties, which no threshold can part
    curve = certify(
        measured("small", ours.tolist(), said.tolist()),
        measured("large", theirs.tolist()),
        FIVE_PERCENT,
        model_fingerprint="m",
    ).curve
    assert [point.threshold for point in curve] == [NOTHING_KEPT, 1.0, 0.9, 0.7, 0.5, 0.2]
    for point in curve:
        kept = said >= point.threshold
        assert (point.n_kept, point.errors_kept) == (kept.sum(), (kept & ~ours).sum())
        assert point.error_bound == upper_bound(point.errors_kept, point.n_kept)
        assert point.routed_accuracy == pytest.approx(np.where(kept, ours, theirs).mean())


def test_on_rows_the_large_model_was_not_measured_on_the_curve_takes_the_draft() -> None:
    small = measured("small", [False] * 10, falling(10))
    large = measured("large", [True] * 4, first=3)
    assert certify(small, large, FIVE_PERCENT, model_fingerprint="m").curve[0].routed_accuracy == 0.4


def wrong_above(threshold: float, jump: float, *, high: float, low: float) -> float:
    """Share of wrong answers at or above `threshold`: confidence uniform, `high` below `jump`, `low` above it."""
    if threshold >= jump:
        return low
    return ((1 - jump) * low + (jump - threshold) * high) / (1 - threshold)


@pytest.mark.parametrize(
    ("jump", "high", "low", "n"),
    [
        (0.5, 0.30, 0.005, 260),  # the surer half is good; the promise breaks soon after
        (0.3, 1.00, 0.005, 140),  # good down to 0.3, then always wrong
        (1.0, 0.0501, 0.0, 260),  # every threshold breaks the promise by a hair: the hardest case there is
    ],
)
def test_the_promise_is_broken_at_most_as_often_as_it_says(jump: float, high: float, low: float, n: int) -> None:
    draw, sets, broken, issued = np.random.default_rng(11), 1000, 0, 0
    for _ in range(sets):
        said = draw.random(n)
        right = draw.random(n) >= np.where(said < jump, high, low)
        found = search_threshold(said, right, FIVE_PERCENT)
        issued += found.n_kept > 0
        broken += found.n_kept > 0 and wrong_above(found.threshold, jump, high=high, low=low) > 0.05
    slack = 3 * math.sqrt(0.05 * 0.95 / sets)
    assert broken / sets <= 0.05 + slack
    if jump < 1:
        assert issued / sets > 0.7  # it does promise where there is something to promise


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 260).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.integers(0, 12))),
    st.sampled_from([(0.02, 0.05), (0.05, 0.06), (0.05, 0.2), (0.1, 0.3)]),
)
def test_a_looser_promise_never_asks_for_more_confidence(
    drawn: tuple[list[int], int], alphas: tuple[float, float]
) -> None:
    # Confidences are distinct: ties can skip the very threshold at which the stricter promise is shown.
    order, n_wrong = drawn
    confidence = [(place + 1) / (len(order) + 1) for place in order]
    correct = [i >= n_wrong for i in range(len(order))]
    strict, loose = (search_threshold(confidence, correct, Promise(at_most_wrong=alpha)) for alpha in alphas)
    assert loose.threshold <= strict.threshold
    assert loose.n_kept >= strict.n_kept
