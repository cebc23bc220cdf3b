"""What `certify` makes of calibration rows: guarantee or refusal, what happens below, the curve and the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.certificates import cascade, falling
from fixtures.evaluations import evaluated_row, evaluation_of
from scipy.stats import binom

from smallfirst.base.stats.intervals import mid_p_value, upper_bound
from smallfirst.base.stats.sample_size import min_rows_without_error
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certificate import NEVER_ACCEPT, Certificate, Guarantee
from smallfirst.routing.certificate.certify import BelowRule, certify, decide_below_threshold, describe_fields
from smallfirst.routing.certificate.looks import LookRequest
from smallfirst.routing.certificate.threshold_search import certify_fields

FIVE_PERCENT = Guarantee()


def measured(
    candidate: str,
    correct: Sequence[bool],
    confidence: Sequence[float | None] | None = None,
    *,
    cost_usd: float = 0.001,
    first: int = 0,
    labels: Sequence[str] = (),
) -> Evaluation:
    """An evaluation of rows numbered from `first`, with these answers if any are given."""
    rows = [
        evaluated_row(
            f"row-{i + first:03}",
            "a",
            labels[i] if labels else "a" if right else "b",
            correct=right,
            confidence=confidence[i] if confidence else None,
            stage=candidate,
            cost_usd=cost_usd,
        )
        for i, right in enumerate(correct)
    ]
    return evaluation_of(rows, candidate=candidate, cost_usd_per_1k=1000 * cost_usd)


def certified(
    small: Evaluation | Sequence[Evaluation],
    large: Evaluation | None = None,
    guarantee: Guarantee = FIVE_PERCENT,
    *,
    judged_by: Any = "gold",
    **more: Any,
) -> Certificate:
    drafts = [small] if isinstance(small, Evaluation) else small
    rows = CalibrationSet.of(drafts, large, guarantee=guarantee, judged_by=judged_by)
    return certify(rows, guarantee, model_fingerprint="m", **more)


def test_too_few_labels_are_refused_with_how_many_it_takes() -> None:
    found = certified(measured("small", [True] * 40, falling(40)))
    assert found.report.why == "too few labels: 40 calibration rows; even without an error this guarantee needs 59"
    missing, chance = found.evidence.labels_missing, found.evidence.labels_missing_chance
    assert missing is not None
    assert chance is not None
    assert (missing > 19, 0.5 <= chance < 1) == (True, True)  # as many would do if none of them were wrong
    assert (found.issued, found.threshold, found.evidence.risks) == (False, NEVER_ACCEPT, ())


def test_a_guarantee_that_is_not_shown_is_refused_with_the_figures() -> None:
    found = certified(measured("small", [True, False] * 50, falling(100)))
    assert found.report.why == (
        "not shown: with 100 calibration rows (50 of all answers wrong) no threshold keeping 59 or more answers shows "
        "at most 5 % wrong; more rows like these are unlikely to show it (0 %): loosen the guarantee, or improve the "
        "model"
    )
    assert (found.evidence.labels_missing, found.evidence.labels_missing_chance) == (None, pytest.approx(0))


def test_a_guarantee_that_is_shown_names_its_evidence_and_survives_json() -> None:
    found = certified(
        measured("small", [True] * 99 + [False], falling(100)), None, Guarantee(max_error=0.075, confidence=0.975)
    )
    # Clopper and Pearson: 0.0545 is the rate at which at most 1 error in 100 has probability 0.025.
    assert found.report.why == (
        "at most 7.5 % of kept answers wrong (97.5 %): 1 of 100 kept calibration answers were wrong, so at most 0.054"
    )
    assert (found.issued, found.evidence.n_accepted, found.evidence.n_errors) == (True, 100, 1)
    assert found.evidence.risks[0].bound == upper_bound(1, 100, confidence=0.975)
    assert (found.model_fingerprint, found.dataset_fingerprint, found.thresholds) == (
        "m",
        "f",
        {"small": found.threshold},
    )
    assert Certificate.model_validate_json(found.model_dump_json()) == found


def test_a_cascade_is_certified_as_a_whole_with_a_threshold_a_stage() -> None:
    draw = np.random.default_rng(1)
    scores = [draw.random(800).tolist() for _ in range(2)]
    stages = [
        measured(name, (draw.random(800) < 0.99).tolist(), said)
        for name, said in zip(("words", "small"), scores, strict=True)
    ]
    found = certified(stages, measured("large", [True] * 800, cost_usd=0.02))
    assert (list(found.thresholds), found.issued) == (["words", "small"], True)
    first, last = found.thresholds.values()
    assert found.threshold == last
    kept = sum(one >= first or two >= last for one, two in zip(*scores, strict=True))
    assert kept == found.evidence.n_accepted


def test_each_limit_is_described_with_its_measurement() -> None:
    draw = np.random.default_rng(3)
    small = measured("small", (draw.random(400) < 0.99).tolist(), draw.random(400).tolist())
    guarantee = Guarantee(max_error=0.1, max_accuracy_loss=0.05)
    found = certified(small, measured("large", [True] * 400, cost_usd=0.02), guarantee)
    error, loss = found.evidence.risks
    assert (error.risk, loss.risk, loss.n) == ("error", "accuracy_loss", 400)
    # Two limits share 5 %, so each is shown at 2.5 %.
    assert error.bound == upper_bound(found.evidence.n_errors, found.evidence.n_accepted, confidence=0.975)
    assert "below the large model on 400 rows, so at most" in found.report.why
    assert "95 % holds for all 2 limits together" in found.report.rests_on


@pytest.mark.parametrize("judged_by", ["gold", "large"])
def test_a_limit_on_the_accuracy_loss_needs_gold_and_the_large_models_answers(judged_by: str) -> None:
    small, large = measured("small", [True] * 300, falling(300)), measured("large", [True] * 300)
    guarantee = Guarantee(max_error=None, max_accuracy_loss=0.05)
    found = certified(small, large if judged_by == "large" else None, guarantee, judged_by=judged_by)
    assert not found.issued
    assert "needs calibration rows with gold labels and the large model's answers" in found.report.why


def test_per_group_only_labels_that_are_shown_are_covered() -> None:
    right = [True] * 200 + [i % 2 == 0 for i in range(100)]
    small = measured("small", right, falling(300), labels=["card"] * 200 + ["loan"] * 100)
    found = certified(small, None, Guarantee(per_group="label"))
    assert found.report.why == (
        "at most 5 % of kept answers wrong of each guaranteed label (95 %): shown for 1 of 2 labels, of whose 200 kept "
        "calibration answers 0 were wrong"
    )
    assert (found.evidence.n_accepted, found.threshold) == (200, falling(300)[199])
    assert [found.covers(label, 0.99) for label in ("card", "loan")] == [True, False]
    assert certified(small).groups == ()  # without the wish it is about all of them together


def test_each_language_has_its_own_threshold_and_says_how_many_rows_it_needs() -> None:
    texts = {"en": "where is the card that I ordered", "de": "wo ist die Karte", "fi": "missä minun korttini on"}
    rows = [
        evaluated_row(f"{one}-{i}", "a", "a" if i < 150 else "b", confidence=1 - i / 1000, text=f"{text} {i}")
        for one, text, n in (("en", texts["en"], 200), ("de", texts["de"], 40), ("fi", texts["fi"], 90))
        for i in range(n)
    ]
    found = certified(evaluation_of(rows), None, Guarantee(languages=("en", "de", "it")))
    assert [(one.label, one.certified, one.n_rows) for one in found.groups] == [
        ("de", False, 40),
        ("en", True, 200),
        ("it", False, 0),
    ]
    de, en, it = found.groups
    assert it.labels_missing == min_rows_without_error(0.05, 0.025) == 72  # beside English, the one with enough
    assert de.labels_missing >= 72 - 40
    assert found.evidence.n_accepted == en.n_accepted >= 150
    assert f"de is not shown by 40 rows, {de.labels_missing} more may do" in found.report.why
    assert found.report.rests_on[0].startswith("90 of its 330 rows are told to be in none of the task's languages")


def test_rows_of_groups_promise_something_about_groups_and_say_so() -> None:
    rows = [evaluated_row(f"row-{i}", "a", "a", confidence=1 - i / 1000, group=f"g{i // 4}") for i in range(400)]
    found = certified(evaluation_of(rows))
    assert (found.evidence.n_labels, found.guarantee.unit) == (100, "group")
    assert found.report.rests_on[0] == "400 calibration rows belong to 100 groups, of each of which one row counts"
    assert found.report.why.startswith("at most 5 % of kept answers wrong, each group counted once (95 %)")


def test_labels_of_the_large_model_are_said_to_be_no_gold() -> None:
    found = certified(measured("small", [True] * 400, falling(400)), measured("large", [True] * 400), judged_by="large")
    assert (found.issued, found.evidence.n_accepted) == (True, 400)
    assert found.audit_limit_for("error", "large") == 0.05
    assert found.report.why.endswith("so at most 0.007; right is what the large model answered")
    assert any("no gold corrects it" in limit for limit in found.report.rests_on)


def test_the_audit_limit_leaves_room_for_answers_that_only_small_gets_right() -> None:
    small, large = measured("small", [True] * 100, falling(100)), measured("large", [True] * 90 + [False] * 10)
    assert certified(small, large).audit_limit_for("error", "large") == 0.05 + upper_bound(10, 100)
    assert certified(small).audit_limit_for("error", "large") is None


def test_a_later_look_has_a_smaller_share_of_the_level(tmp_path: Path) -> None:
    def look(n: int, guarantee: Guarantee = FIVE_PERCENT, name: str = "looks") -> Certificate:
        small = measured("small", [True] * n, falling(n))
        return certified(small, None, guarantee, look=LookRequest(tmp_path / f"{name}.json"))

    first, _, second = look(110), look(110, Guarantee(max_error=0.06), "other"), look(110, name="other")
    assert first.evidence.risks[0].bound == pytest.approx(upper_bound(0, 110, confidence=1 - 0.04))
    assert second.evidence.risks[0].bound == pytest.approx(upper_bound(0, 110, confidence=1 - 0.005))
    assert "certificate number 2 tried on these calibration rows" in second.report.rests_on[1]
    assert "it takes 0.5 %: one look 4 % and all others together 1 %" in second.report.rests_on[1]
    # 0.95 ** 103 is above 0.005, 0.95 ** 104 below: 104 rows are the fewest of a second look.
    for n in (103, 104):
        look(n, Guarantee(max_error=0.06), str(n))
        assert look(n, name=str(n)).issued == (n == 104)


def test_no_rows_at_all_show_nothing() -> None:
    for wish in (FIVE_PERCENT, Guarantee(max_accuracy_loss=0.1), Guarantee(max_error=None, max_wrong_fields=0.1)):
        found = certified(measured("small", [], []), measured("large", []), wish)
        assert (found.issued, found.below) == (False, "keep")


def with_fields() -> Evaluation:
    rows = [
        evaluated_row(
            f"row-{i}",
            "{}",
            "{}",
            correct=i < 100,
            confidence=0.5,
            field_confidence={"date": 0.99 - i / 10_000, "note": 0.9 - i / 1_000},
            wrong_fields=() if i < 100 else ("note",),
        )
        for i in range(200)
    ]
    return evaluation_of(rows, split="calibration")


def test_a_certificate_may_be_about_fields_alone() -> None:
    found = certified(with_fields(), None, Guarantee(max_error=None, max_wrong_fields=0.1))
    assert found.issued
    assert (found.evidence.n_labels, found.evidence.n_accepted) == (200, found.fields.whole.n_rows_kept)
    assert f"{found.fields.each.n_kept} of 400 fields are kept" in found.report.why
    assert not found.covers("{}", 1.0)  # no limit is on whole answers
    assert found.keeps_fields({"date": 0.95, "note": 0.89})
    few = evaluation_of([row.model_copy(update={"group": "one"}) for row in with_fields().rows])
    refused = certified(few, None, Guarantee(max_error=None, max_wrong_fields=0.1))
    assert (refused.issued, refused.fields is not None) == (False, True)
    assert "200 rows in 1 groups show at no threshold" in refused.report.why


def test_limits_on_answers_and_fields_share_the_level() -> None:
    found = certified(with_fields(), None, Guarantee(max_error=0.6, max_wrong_fields=0.1))
    alone = certified(with_fields(), None, Guarantee(max_error=0.6, confidence=0.975))
    assert (found.issued, found.evidence.risks) == (True, alone.evidence.risks)
    assert not found.keeps_fields({"date": 0.99, "note": 0.9})  # the limit on answers decides which of them stay
    table = CalibrationSet.of([with_fields()], guarantee=found.guarantee).fields
    assert table is not None
    assert found.fields == certify_fields(table, 0.1, level=0.025)
    assert describe_fields(certify_fields(table, 0.1, level=0.025), 0.1) in found.report.why


# Below the threshold


ALONE, PERSON, PASSED_ON = BelowRule(), BelowRule(person=True), BelowRule(alone=False)


def answers(more: int, less: int, **others: Any) -> CalibrationSet:
    """Data of 80 rows: on how many only the large model is right, and on how many only the small one."""
    small, large = [False] * more + [True] * (80 - more), [True] * (80 - less) + [False] * less
    return cascade(falling(80), small, large_right=np.array(large), **others)


NOBODY_ASKED = {"asked": np.zeros(80, dtype=bool)}


@pytest.mark.parametrize(
    ("rows", "rule", "action", "why"),
    [
        (answers(24, 12), ALONE, "escalate", "one-sided p = 0.024): shown to be better"),
        (answers(24, 16), ALONE, "keep", ": not shown to be better, so they stay small"),  # mid-p 0.11
        (answers(24, 12), PERSON, "escalate", "shown to be better"),
        (answers(0, 80), PERSON, "abstain", ": not shown to be better, so they go to a person's queue"),
        (answers(0, 80), PASSED_ON, "escalate", "only certified answers stay small, the others go on; on 80"),
        (answers(24, 12), BelowRule(alone=False, person=True), "escalate", "the others go on"),
        (answers(24, 12, **NOBODY_ASKED), PASSED_ON, "escalate", "the others go on; nothing tells"),
        (
            answers(24, 12, **NOBODY_ASKED),
            BelowRule(alone=False, person=True),
            "abstain",
            "without a large model the others wait for a person",
        ),
        (answers(24, 12, **NOBODY_ASKED), ALONE, "keep", "nothing tells whether the large model is better there"),
        (answers(24, 12, judged_by="large"), ALONE, "keep", "nothing tells whether the large model is better there"),
        # 0.41 [0.31, …] better, and an answer costs $0.10: it pays from 0.1 on, or from 0.33 on.
        (answers(36, 3), BelowRule(True, False, 1.0), "escalate", "better and worth its price at $1 a wrong answer"),
        (answers(36, 3), BelowRule(True, False, 0.3), "keep", "not shown to be better and worth its price at $0.3"),
    ],
)
def test_what_happens_below_the_threshold_follows_from_paired_evidence(
    rows: CalibrationSet, rule: BelowRule, action: str, why: str
) -> None:
    found, said = decide_below_threshold(rows, np.zeros(rows.n, dtype=bool), rule)
    assert found == action
    assert why in said


def test_accepted_rows_say_nothing_about_what_is_below() -> None:
    data = answers(24, 12)
    assert decide_below_threshold(data, ~data.right[0], ALONE)[0] == "keep"  # where large alone is right
    everything = decide_below_threshold(data, np.ones(80, dtype=bool), ALONE)
    assert everything == ("keep", "no calibration row falls below the threshold, so they stay small")


@pytest.mark.parametrize("n", [20, 80])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_requests_are_sent_on_without_a_gain_in_at_most_5_of_100_draws(n: int, rate: float) -> None:
    chance = 0.0  # exact, where the models differ on a row at this rate and each is then right as often
    for differ in range(n + 1):
        sent = sum(binom.pmf(k, differ, 0.5) for k in range(differ + 1) if mid_p_value(differ - k, k) <= 0.05)
        chance += binom.pmf(differ, n, rate) * sent
    assert 0 < chance <= 0.05


def test_with_a_limit_on_the_accuracy_loss_the_rest_stays_small_only_where_that_is_shown() -> None:
    # Of 150 less confident rows large alone is right on 20, small alone on 14: no gain is shown.
    small = measured("small", [True] * 150 + [False] * 20 + [True] * 130, falling(300))
    large = measured("large", [True] * 170 + [False] * 14 + [True] * 116)
    strict = certified(small, large, Guarantee(max_error=0.05, max_accuracy_loss=0.03))
    assert (strict.issued, strict.below) == (True, "escalate")
    assert strict.report.below_why.endswith("but the limit on the accuracy loss is not shown where they do")
    assert certified(small, large, Guarantee(max_error=0.05)).below == "keep"
    assert certified(small, large, Guarantee(max_error=0.05, max_accuracy_loss=0.2)).below == "keep"
    person = BelowRule(person=True)  # a person loses nothing
    assert decide_below_threshold(answers(24, 16), np.zeros(80, dtype=bool), person, may_keep=False)[0] == "abstain"


# The curve


def test_the_curve_begins_all_large_and_ends_all_small() -> None:
    draw = np.random.default_rng(5)
    ours, theirs = (draw.random(150) < 0.8).tolist(), (draw.random(150) < 0.9).tolist()
    small = measured("small", ours, draw.random(150).tolist(), cost_usd=0.001)
    curve = certified(small, measured("large", theirs, cost_usd=0.02)).report.curve
    first, last = curve[0], curve[-1]
    assert (first.threshold, first.n_accepted, first.n_errors) == (NEVER_ACCEPT, 0, 0)
    assert (first.routed_accuracy, last.routed_accuracy) == (sum(theirs) / 150, sum(ours) / 150)
    assert (first.routed_cost_usd_per_1k, last.routed_cost_usd_per_1k) == (pytest.approx(21.0), pytest.approx(1.0))
    assert (last.n_accepted, last.n_errors) == (150, 150 - sum(ours))


def test_every_point_of_the_curve_is_what_its_threshold_gives() -> None:
    draw = np.random.default_rng(6)
    ours, theirs = draw.random(90) < 0.8, draw.random(90) < 0.9
    scores = draw.choice([0.2, 0.5, 0.7, 0.9, 1.0], 90)  # many ties, which no threshold can part
    found = certified(measured("small", ours.tolist(), scores.tolist()), measured("large", theirs.tolist()))
    assert [point.threshold for point in found.report.curve] == [NEVER_ACCEPT, 1.0, 0.9, 0.7, 0.5, 0.2]
    for point in found.report.curve:
        kept = scores >= point.threshold
        assert (point.n_accepted, point.n_errors) == (kept.sum(), (kept & ~ours).sum())
        assert point.error_bound == upper_bound(point.n_errors, point.n_accepted)
        assert point.routed_accuracy == pytest.approx(np.where(kept, ours, theirs).mean())
