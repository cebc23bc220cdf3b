"""The certificate: thresholds by hand, and by simulation the guarantee kept as often as stated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.certificates import falling
from fixtures.evaluations import evaluated_row, evaluation_of
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.base.stats.intervals import paired_difference, upper_bound, wilson
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.routing.certificate.certificate import BelowRule, Certificate, certify
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT
from smallfirst.routing.certificate.threshold_search import ThresholdSearchResult, search_threshold

FIVE_PERCENT = Guarantee()


def measured(
    candidate: str,
    correct: Sequence[bool],
    confidence: Sequence[float | None] | None = None,
    *,
    cost_usd: float = 0.001,
    first: int = 0,
) -> Evaluation:
    """An evaluation of rows numbered from `first`."""
    rows = [
        evaluated_row(
            f"row-{number}",
            "a",
            "a" if right else "b",
            confidence=confidence[number - first] if confidence else None,
            stage=candidate,
            cost_usd=cost_usd,
        )
        for number, right in enumerate(correct, start=first)
    ]
    return evaluation_of(rows, candidate=candidate, model=candidate, cost_usd_per_1k=1000 * cost_usd)


def certified(
    small: Evaluation | Sequence[Evaluation],
    large: Evaluation | None = None,
    guarantee: Guarantee = FIVE_PERCENT,
    **more: Any,
) -> Certificate:
    return certify(small, large, guarantee, model_fingerprint="m", **more)


def chance_of(found: Certificate) -> float:
    assert found.labels_missing_chance is not None
    return found.labels_missing_chance


def searched(confidence: Sequence[float], correct: Sequence[bool]) -> ThresholdSearchResult:
    return search_threshold(confidence, correct, FIVE_PERCENT)


@pytest.mark.parametrize("n", [59, 60])
def test_fifty_nine_rows_without_an_error_are_enough_for_five_percent(n: int) -> None:
    confidence = falling(n)
    assert searched(confidence, [True] * n) == ThresholdSearchResult(threshold=confidence[-1], n_accepted=n, n_errors=0)


def test_fifty_eight_are_not() -> None:
    found = searched(falling(58), [True] * 58)
    assert found == ThresholdSearchResult(threshold=NEVER_ACCEPT, n_accepted=0, n_errors=0)


def test_one_error_among_ninety_three_is_shown_and_among_ninety_two_is_not() -> None:
    # 0.95**93 + 93 * 0.05 * 0.95**92 = 0.04999 and with 92 rows 0.0521; the error is the least sure row.
    found = [searched(falling(n), [True] * (n - 1) + [False]) for n in (93, 92)]
    assert [(search.n_accepted, search.n_errors) for search in found] == [(93, 1), (91, 0)]


def test_the_first_failure_stops_the_search() -> None:
    # 60 right, 2 wrong (fails: two errors in 62), then 200 right, which would have passed again.
    correct = [True] * 60 + [False] * 2 + [True] * 58
    assert searched(falling(120), correct) == ThresholdSearchResult(
        threshold=falling(120)[59], n_accepted=60, n_errors=0
    )
    longer = correct + [True] * 200
    assert upper_bound(2, len(longer)) < 0.05
    # With more rows the search starts where half of them are kept, past the two errors.
    assert searched(falling(320), longer).n_accepted == 320


def test_where_the_search_begins_does_not_depend_on_which_answers_are_right() -> None:
    # From half of the rows on, the first 100 of 200 are tried first: 11 errors show nothing, however good the first 80.
    correct = [True] * 80 + [False] * 20 + [True] * 100
    assert search_threshold(falling(200), correct, FIVE_PERCENT, ((0.5, 1.0),)).n_accepted == 0
    # With half of the level it also begins at 72 rows, and 80 without an error are shown at 2.5 %; 81 with one are not.
    assert searched(falling(200), correct).n_accepted == 80


def test_rows_of_equal_confidence_are_kept_together_or_not_at_all() -> None:
    confidence = [0.9] * 58 + [0.8] * 10 + [0.7] * 10
    correct = [True] * 68 + [False] * 10
    # 59 rows would do, but the 59th shares its confidence with nine others.
    assert searched(confidence, correct) == ThresholdSearchResult(threshold=0.8, n_accepted=68, n_errors=0)
    # One wrong row among the ten is too many for 68, so none of them is kept, nor the 58 alone.
    correct[60] = False
    assert searched(confidence, correct).n_accepted == 0


def test_the_order_of_rows_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    confidence, correct = draw.random(200), draw.random(200) < 0.99
    order = draw.permutation(200)
    assert searched(confidence, correct) == searched(confidence[order], correct[order])


def test_too_few_labels_are_refused_with_how_many_it_takes() -> None:
    found = certified(measured("small", [True] * 40, falling(40)))
    assert not found.issued
    assert found.why == ("too few labels: 40 calibration rows; even without an error this guarantee needs 59")
    assert (found.labels_missing or 0) > 19  # as many would do if none of them were wrong
    assert 0.5 <= chance_of(found) < 1
    assert (found.threshold, found.n_accepted, found.risks) == (NEVER_ACCEPT, 0, ())
    assert found.coverage == wilson(0, 40)


def test_a_guarantee_that_is_not_shown_is_refused_with_the_figures() -> None:
    small = measured("small", [True, False] * 50, falling(100))
    found = certified(small)
    assert found.why == (
        "not shown: with 100 calibration rows (50 of all answers wrong) no threshold keeping 59 or more answers shows "
        "at most 5 % wrong; more rows like these are unlikely to show it (0 %): loosen the guarantee, or improve the "
        "model"
    )
    assert (found.labels_missing, chance_of(found)) == (None, pytest.approx(0))


def test_a_guarantee_that_is_shown_names_its_evidence() -> None:
    small = measured("small", [True] * 99 + [False], falling(100))
    guarantee = Guarantee(max_error=0.075, confidence=0.975)
    found = certified(small, None, guarantee)
    # Clopper and Pearson: 0.0545 is the rate at which at most 1 error in 100 has probability 0.025.
    assert found.why == (
        "at most 7.5 % of kept answers wrong (97.5 %): 1 of 100 kept calibration answers were wrong, so at most 0.054"
    )
    assert (found.issued, found.n_accepted, found.n_errors, found.n_labels) == (True, 100, 1, 100)
    assert found.risks[0].bound == upper_bound(1, 100, confidence=0.975)
    assert (found.model_fingerprint, found.dataset_fingerprint) == ("m", "f")


def test_uncertain_requests_are_escalated_where_the_large_model_was_right_more_often() -> None:
    # 60 confident and right, then 10 uncertain: small right on 2, large on 7 (6 that small misses, and 1 of its own 2).
    ours = [True] * 60 + [True, True] + [False] * 8
    theirs = [False] * 60 + [True, False] + [True] * 6 + [False] * 2
    found = certified(measured("small", ours, falling(60) + [0.1] * 10), measured("large", theirs))
    assert (found.n_accepted, found.below) == (60, "escalate")
    # Mid-p of 6 against 1: (1 + 7 / 2) / 2**7
    assert found.below_why == (
        "on 10 calibration rows below the threshold large is right on 7, small on 2 "
        f"(difference {paired_difference(theirs[60:], ours[60:])}, one-sided p = 0.035): shown to be better"
    )


@pytest.mark.parametrize("large_right", [0, 2, 5])
def test_uncertain_requests_stay_small_where_the_large_model_is_not_shown_to_be_better(large_right: int) -> None:
    ours = [True] * 60 + [True, True] + [False] * 8
    theirs = [True] * 60 + [False] * (10 - large_right) + [True] * large_right
    found = certified(measured("small", ours, falling(60) + [0.1] * 10), measured("large", theirs))
    assert found.below == "keep"
    assert found.below_why.endswith(": not shown to be better, so they stay small")


def test_a_large_model_that_was_not_measured_gets_nothing_from_a_candidate_that_passed_alone() -> None:
    small = measured("small", [True] * 60 + [False] * 10, falling(60) + [0.1] * 10)
    found = certified(small)
    why = "the large model was not measured, so they stay small"
    assert (found.below, found.below_why) == ("keep", why)
    routed = certified(small, below=BelowRule(alone=False))
    assert routed.below == "escalate"
    assert routed.below_why.endswith("the others go on; the large model was not measured")


def test_a_large_model_measured_on_other_rows_only_gets_nothing_and_that_is_said() -> None:
    small = measured("small", [True] * 60 + [False] * 10, falling(60) + [0.1] * 10)
    found = certified(small, measured("large", [True] * 60))
    assert (found.below, found.below_why) == (
        "keep",
        "the large model was not measured on rows below the threshold, so they stay small",
    )


def test_if_everything_is_kept_nothing_is_below() -> None:
    found = certified(measured("small", [True] * 60, falling(60)), measured("large", [True] * 60))
    assert (found.below, found.below_why) == (
        "keep",
        "no calibration row falls below the threshold, so they stay small",
    )


def test_an_answer_without_confidence_counts_as_no_confidence_at_all() -> None:
    found = certified(measured("small", [True] * 60 + [False] * 5, [*falling(60), *[None] * 5]))
    assert found.n_accepted == 60


def test_the_curve_begins_all_large_and_ends_all_small() -> None:
    draw = np.random.default_rng(5)
    ours, theirs = (draw.random(150) < 0.8).tolist(), (draw.random(150) < 0.9).tolist()
    small = measured("small", ours, draw.random(150).tolist(), cost_usd=0.001)
    large = measured("large", theirs, cost_usd=0.02)
    curve = certified(small, large).curve
    assert (curve[0].threshold, curve[0].n_accepted, curve[0].n_errors) == (NEVER_ACCEPT, 0, 0)
    assert curve[0].routed_accuracy == sum(theirs) / 150
    assert curve[0].routed_cost_usd_per_1k == pytest.approx(21.0)  # thrown-away drafts are paid too
    assert (curve[-1].n_accepted, curve[-1].n_errors) == (150, 150 - sum(ours))
    assert curve[-1].routed_accuracy == sum(ours) / 150
    assert curve[-1].routed_cost_usd_per_1k == pytest.approx(1.0)
    assert curve[-1].threshold == min(row.confidence or 0.0 for row in small.rows)


def test_the_certified_threshold_is_a_point_of_the_curve() -> None:
    for n in (400, 501, 777):
        scores = np.random.default_rng(n).random(n)
        small = measured("small", (scores > 0.1).tolist(), scores.tolist())
        found = certified(small)
        assert found.issued
        (point,) = [p for p in found.curve if p.threshold == found.threshold]
        assert (point.n_accepted, point.n_errors) == (found.n_accepted, found.n_errors)


def test_every_point_of_the_curve_is_what_its_threshold_gives() -> None:
    draw = np.random.default_rng(6)
    ours, theirs = draw.random(90) < 0.8, draw.random(90) < 0.9
    scores = draw.choice([0.2, 0.5, 0.7, 0.9, 1.0], 90)  # many ties, which no threshold can part
    curve = certified(measured("small", ours.tolist(), scores.tolist()), measured("large", theirs.tolist())).curve
    assert [point.threshold for point in curve] == [NEVER_ACCEPT, 1.0, 0.9, 0.7, 0.5, 0.2]
    for point in curve:
        kept = scores >= point.threshold
        assert (point.n_accepted, point.n_errors) == (kept.sum(), (kept & ~ours).sum())
        assert point.error_bound == upper_bound(point.n_errors, point.n_accepted)
        assert point.routed_accuracy == pytest.approx(np.where(kept, ours, theirs).mean())


def test_on_rows_the_large_model_was_not_measured_on_the_curve_takes_the_draft() -> None:
    small = measured("small", [False] * 10, falling(10))
    large = measured("large", [True] * 4, first=3)
    assert certified(small, large).curve[0].routed_accuracy == 0.4


def wrong_above(threshold: float, jump: float, *, high: float, low: float) -> float:
    """Share of wrong answers at or above `threshold`: confidence uniform, `high` below `jump`, `low` above it."""
    if threshold >= jump:
        return low
    return ((1 - jump) * low + (jump - threshold) * high) / (1 - threshold)


@pytest.mark.parametrize(
    ("jump", "high", "low", "n"),
    [
        (0.5, 0.30, 0.005, 260),  # the surer half is good; the guarantee breaks soon after
        (0.3, 1.00, 0.005, 140),  # good down to 0.3, then always wrong
        (1.0, 0.0501, 0.0, 260),  # every threshold breaks the guarantee by a little: the hardest case there is
    ],
)
def test_the_guarantee_is_broken_at_most_as_often_as_it_says(jump: float, high: float, low: float, n: int) -> None:
    draw, sets, broken, issued = np.random.default_rng(11), 1000, 0, 0
    for _ in range(sets):
        scores = draw.random(n)
        right = draw.random(n) >= np.where(scores < jump, high, low)
        found = searched(scores, right)
        issued += found.n_accepted > 0
        broken += found.n_accepted > 0 and wrong_above(found.threshold, jump, high=high, low=low) > 0.05
    slack = 3 * math.sqrt(0.05 * 0.95 / sets)
    assert broken / sets <= 0.05 + slack
    if jump < 1:
        assert issued / sets > 0.7  # it is issued where it can be


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 260).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.integers(0, 12))),
    st.sampled_from([(0.02, 0.05), (0.05, 0.06), (0.05, 0.2), (0.1, 0.3)]),
)
def test_a_looser_guarantee_never_asks_for_more_confidence(
    drawn: tuple[list[int], int], alphas: tuple[float, float]
) -> None:
    # Confidences are distinct: ties can skip the very threshold at which the stricter guarantee is shown.
    order, n_wrong = drawn
    confidence = [(place + 1) / (len(order) + 1) for place in order]
    correct = [i >= n_wrong for i in range(len(order))]
    strict, loose = (search_threshold(confidence, correct, Guarantee(max_error=alpha)) for alpha in alphas)
    assert loose.threshold <= strict.threshold
    assert loose.n_accepted >= strict.n_accepted


def test_a_cascade_is_certified_as_a_whole_with_a_threshold_a_stage() -> None:
    draw = np.random.default_rng(1)
    ours = [(draw.random(800) < share).tolist() for share in (0.99, 0.99)]
    scores = [draw.random(800).tolist() for _ in ours]
    words, small = (measured(name, o, s) for name, o, s in zip(("words", "small"), ours, scores, strict=True))
    found = certified((words, small), measured("large", [True] * 800, cost_usd=0.02))
    assert list(found.thresholds) == ["words", "small"]
    assert found.issued
    first, last = found.thresholds.values()
    assert found.threshold == last
    assert sum(one >= first or two >= last for one, two in zip(*scores, strict=True)) == found.n_accepted
    assert found.covers("a", first, threshold=first)
    assert not found.covers("a", first - 1e-9, threshold=first)


def test_one_stage_given_alone_or_in_a_list_is_the_same() -> None:
    small, large = measured("small", [True] * 99 + [False], falling(100)), measured("large", [True] * 100)
    alone = certified(small, large)
    assert certified([small], large) == alone
    assert (alone.thresholds, alone.n_accepted) == ({"small": alone.threshold}, 100)


def test_a_draft_that_was_not_measured_on_all_rows_is_refused_with_how_many_are_missing() -> None:
    words, small = measured("words", [True] * 60), measured("small", [True] * 90, falling(90))
    with pytest.raises(DataError, match="words was not measured on 30 of the 90 calibration rows of small"):
        certified([words, small])
    with pytest.raises(ConfigError, match="a guarantee by label covers one drafting stage"):
        certified([small, small], None, Guarantee(per_group="label"))


def test_a_certificate_survives_json() -> None:
    draw = np.random.default_rng(2)
    small = measured("small", (draw.random(300) < 0.97).tolist(), draw.random(300).tolist())
    large = measured("large", (draw.random(300) < 0.9).tolist())
    guarantee = Guarantee(max_error=0.1, max_accuracy_loss=0.1)
    found = certified(small, large, guarantee)
    assert found.issued
    assert Certificate.model_validate_json(found.model_dump_json()) == found
    assert found.covers(None, found.threshold)


def test_each_limit_is_described_with_its_measurement() -> None:
    draw = np.random.default_rng(3)
    small = measured("small", (draw.random(600) < 0.99).tolist(), draw.random(600).tolist())
    guarantee = Guarantee(max_error=0.1, max_accuracy_loss=0.05)
    found = certified(small, measured("large", [True] * 600, cost_usd=0.02), guarantee)
    assert found.issued
    assert [one.risk for one in found.risks] == ["error", "accuracy_loss"]
    # Two limits share 5 %, so each is shown at 2.5 %.
    wrong = found.risks[0]
    assert wrong.bound == upper_bound(found.n_errors, found.n_accepted, confidence=0.975)
    assert "below the large model on 600 rows, so at most" in found.why
    assert "95 % holds for all 2 limits together" in found.limits_of_validity


def test_a_limit_on_the_accuracy_loss_needs_the_large_models_answers() -> None:
    small = measured("small", [True] * 300, falling(300))
    guarantee = Guarantee(max_error=None, max_accuracy_loss=0.05)
    found = certified(small, None, guarantee)
    assert found.why == (
        'not shown: "at most 5 points less accurate than the large model" needs the large model\'s answers on the '
        "calibration rows, of which 300 of 300 are missing"
    )
    assert not found.issued
    shown = certified(small, measured("large", [True] * 300), guarantee)
    assert shown.issued
    assert shown.n_accepted == 300
    assert (shown.risks[0].value, shown.risks[0].n) == (0.0, 300)


def test_one_decision_holds_for_all_that_is_below_the_threshold() -> None:
    # 200 sure and right; then 40 on which large is better, then 40 on which it is worse.
    ours = [True] * 200 + [False] * 40 + [True] * 20 + [False] * 20
    theirs = [True] * 200 + [True] * 40 + [False] * 40
    scores = falling(200) + [0.4 - i / 1000 for i in range(40)] + [0.1 - i / 1000 for i in range(40)]
    small, large = measured("small", ours, scores), measured("large", theirs)
    found = certified(small, large)
    # Four wrong answers among 204 kept are still at most 5 %, so the threshold lies at 0.397.
    covered = [found.covers("a", confidence) for confidence in (0.9, 0.45, 0.39, 0.09, 0.0, None)]
    assert (covered, found.below) == ([True, True, False, False, False, False], "escalate")
    worse = certified(small, measured("large", [True] * 200 + [False] * 80), below=BelowRule(person=True))
    assert (worse.threshold, worse.below) == (found.threshold, "abstain")


def test_with_a_limit_on_the_accuracy_loss_the_rest_stays_small_only_where_that_is_shown() -> None:
    # Of 150 less confident rows large alone is right on 20, small alone on 14: no gain is shown.
    small = measured("small", [True] * 150 + [False] * 20 + [True] * 130, falling(300))
    large = measured("large", [True] * 170 + [False] * 14 + [True] * 116)
    strict = certified(small, large, Guarantee(max_error=0.05, max_accuracy_loss=0.03))
    assert (strict.issued, strict.below) == (True, "escalate")
    assert strict.below_why.endswith("but the limit on the accuracy loss is not shown where they do")
    assert certified(small, large, Guarantee(max_error=0.05)).below == "keep"
    assert certified(small, large, Guarantee(max_error=0.05, max_accuracy_loss=0.2)).below == "keep"


def test_per_class_only_labels_that_are_shown_are_covered() -> None:
    right = [True] * 200 + [i % 2 == 0 for i in range(100)]
    small = measured("small", right, falling(300))
    scores = ["card"] * 200 + ["loan"] * 100
    rows = tuple(row.model_copy(update={"answer": label}) for row, label in zip(small.rows, scores, strict=True))
    small = small.model_copy(update={"rows": rows})
    found = certified(small, None, Guarantee(per_group="label"))
    assert found.why == (
        "at most 5 % of kept answers wrong of each guaranteed label (95 %): shown for 1 of 2 labels, of whose 200 kept "
        "calibration answers 0 were wrong"
    )
    assert (found.n_accepted, found.threshold) == (200, falling(300)[199])
    assert found.covers("card", 0.99)
    assert not found.covers("card", found.threshold - 1e-9)
    assert not found.covers("loan", 0.99)
    assert not found.covers("never seen", 0.99)
    assert found.below == "keep"
    whole = certified(small)  # without the wish it is about all of them together
    assert whole.classes == ()
    assert whole.covers("loan", 0.99)


def test_the_audit_limit_leaves_room_for_answers_that_only_small_gets_right() -> None:
    ours = [True] * 100
    theirs = [True] * 90 + [False] * 10
    found = certified(measured("small", ours, falling(100)), measured("large", theirs))
    assert found.audit_limit_for("error", "large") == 0.05 + upper_bound(10, 100)
    alone = certified(measured("small", ours, falling(100)))
    assert alone.audit_limit_for("error", "large") is None


def test_labels_of_the_large_model_are_said_to_be_no_gold() -> None:
    found = certified(measured("small", [True] * 400, falling(400)), measured("large", [True] * 400), labels="large")
    assert (found.issued, found.n_accepted) == (True, 400)
    assert found.audit_limit_for("error", "large") == 0.05
    assert found.why.endswith("so at most 0.007; right is what the large model answered")
    assert any("no gold corrects it" in limit for limit in found.limits_of_validity)


def test_rows_of_groups_promise_something_about_groups_and_say_so() -> None:
    rows = [evaluated_row(f"row-{i}", "a", "a", confidence=0.9, group=f"g{i // 2}") for i in range(200)]
    found = certified(evaluation_of(rows, candidate="small", model="small"))
    assert found.guarantee.in_words == "at most 5 % of kept answers wrong, each group counted once (95 %)"
    assert found.why.startswith(found.guarantee.in_words)
    assert any(told.startswith("each group counts once") for told in found.limits_of_validity)


def test_a_later_look_has_a_smaller_share_of_the_level(tmp_path: Path) -> None:
    small, other = measured("small", [True] * 110, falling(110)), Guarantee(max_error=0.06)
    first = certified(small, looks=tmp_path / "looks.json")
    certified(small, guarantee=other, looks=tmp_path / "other.json")
    second = certified(small, looks=tmp_path / "other.json")
    assert first.risks[0].bound == pytest.approx(upper_bound(0, 110, confidence=1 - 0.04))
    assert second.risks[0].bound == pytest.approx(upper_bound(0, 110, confidence=1 - 0.005))
    assert (first.issued, second.issued) == (True, True)
    assert second.why.startswith("at most 5 % of kept answers wrong (95 %)")
    assert "certificate number 2 tried on these calibration rows" in second.limits_of_validity[1]
    assert "it takes 0.5 %: one look 4 % and all others together 1 %" in second.limits_of_validity[1]
    # 0.95 ** 103 is above 0.005, 0.95 ** 104 below: 104 rows are the fewest of a second look.
    for n in (103, 104):
        looks, fewer = tmp_path / f"{n}.json", measured("small", [True] * n, falling(n))
        certified(fewer, guarantee=other, looks=looks)
        assert certified(fewer, looks=looks).issued == (n == 104)


def test_no_rows_at_all_show_nothing() -> None:
    guarantee = Guarantee(max_accuracy_loss=0.1)
    for wish in (FIVE_PERCENT, guarantee):
        found = certified(measured("small", [], []), measured("large", []), wish)
        assert not found.issued
        assert found.below == "keep"
