"""The monitor: which limits it watches, what changes its state, and that quiet traffic changes nothing."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from fixtures.certificates import cascade, certificate
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.stats.sequential import MAX_WEIGHT, share_wrong, weighted_interval
from smallfirst.routing.certificate.calibration_set import audit_limits
from smallfirst.routing.certificate.certificate import Certificate, Guarantee, ThresholdPoint
from smallfirst.routing.monitor import (
    UNIFORM,
    AuditAllocation,
    Judge,
    Monitor,
    MonitorSettings,
    Quantity,
    StateChange,
    allocate_audits,
    not_watched,
    watched_quantities,
)

ERROR = Quantity("error", 0.05, "at most 5 % wrong")


def monitor(settings: MonitorSettings | None = None, **more: Any) -> Monitor:
    return Monitor(settings or MonitorSettings(), **{"quantities": [ERROR], **more})


def audited(of: Monitor, error: float, n: int, *, seed: int = 0) -> list[StateChange]:
    """The changes caused by n audits with this error rate."""
    draw = random.Random(seed)
    return [change for _ in range(n) if (change := of.record(draw.random() < error))]


def until_changed(of: Monitor, wrong: bool, **values: Any) -> StateChange:
    while not (change := of.record(wrong, **values)):
        pass
    return change


def test_a_broken_small_model_falls_back_and_returns_when_it_is_repaired() -> None:
    watch, fell_back = monitor(), datetime.now(UTC)
    audited(watch, 0.01, 50)
    broken = until_changed(watch, True, at=fell_back)
    assert (broken.before, broken.after, broken.cause) == ("live", "fallback", "guarantee")
    assert "audited answers were wrong, at most 5 % may be" in broken.why
    assert "(alarm at 27)" in broken.why  # 20 * 4 / 3: the first test has three quarters of the false-alarm rate
    assert watch.alarms == (broken,)
    assert [one.name for one in (watched.quantity for watched in watch.watches if watched.exceeded)] == ["error"]

    assert audited(watch, 0.4, 300) == []  # still broken
    assert watch.live_error.low > 0.25
    before = watch.live_error
    # An answer from before the fallback counts no longer.
    watch.record(False, answered_at=fell_back - timedelta(seconds=1))
    watch.record(False, weight=2.0)
    assert watch.live_error == before
    watch.record(True, answered_at=fell_back)
    assert watch.live_error.n == before.n + 1
    (back,) = audited(watch, 0.01, 4000)
    assert (back.before, back.after, back.cause) == ("fallback", "live", "recovery")
    assert "(asked for: 20)" in back.why
    assert watch.alarms == (broken,)
    assert "(alarm at 107)" in until_changed(watch, True).why  # the second test has a quarter of what was left


def test_only_live_answers_have_chances_by_confidence() -> None:
    settings = MonitorSettings(audit_share=0.1, audit_share_in_fallback=0.1)
    watch = monitor(settings, allocation=AuditAllocation((0.7,), (2.0, 0.5)))
    assert watch.plan_audit(0.6).propensity == pytest.approx(0.1 * 1.9)
    assert watch.plan_audit(None).propensity == pytest.approx(0.1)
    until_changed(watch, True)
    assert watch.plan_audit(0.6) == (0.1, 1.0)


def test_more_is_audited_while_the_last_audits_speak_against_a_limit() -> None:
    watch = monitor()
    audited(watch, 0.0, 300)
    shares = [watch.audit_share for _ in range(3) if not watch.record(True)]
    # A wrong one multiplies by 2 / 1.05, a right one by 1 / 1.05: 1.90, 3.63, 6.91, and 3.02 after 17 right ones.
    assert shares == [0.02, 0.1, 0.1]
    audited(watch, 0.0, 17)
    assert (watch.state, watch.plan_audit(0.6)) == ("live", (0.1, 1.0))
    audited(watch, 0.0, 1)
    assert watch.plan_audit(0.6) == (0.02, 1.0)


def test_the_live_error_and_an_alarm_count_audits_by_their_weights() -> None:
    watch = monitor()
    for wrong, weight in ((True, 0.5), (True, 0.5), (False, 2.0)):
        watch.record(wrong, weight=weight)
    assert watch.live_error.value == pytest.approx(1 / 3)
    assert "% of all by their weights" in until_changed(watch, True, weight=0.5).why


def test_false_alarms_in_quiet_lives_stay_below_their_bound() -> None:
    """The hardest quiet case: an error at the limit. Of 60 lives at 20 % so many at most may have an alarm."""
    alarmed = sum(bool(audited(monitor(MonitorSettings(confidence=0.8)), 0.05, 400, seed=seed)) for seed in range(60))
    assert alarmed / 60 <= 0.2 + 3 * 0.052


BOTH = [ERROR, Quantity("accuracy", 0.2, "at most 20 % wrong", by_gate=True)]
"""A promise about a part of the answers, and a gate about all."""


def test_answers_without_a_promise_test_the_gate_alone() -> None:
    watch = monitor(quantities=BOTH)
    assert [watch.record(i % 7 == 0, certified=False) for i in range(200)] == [None] * 200
    assert (watch.live_error.n, watch.state) == (0, "live")
    error, accuracy = watch.watches
    assert (watch.mean(error).n, watch.mean(accuracy).n) == (0, 200)
    change = until_changed(watch, True, certified=False)
    assert (change.cause, change.after) == ("guarantee", "fallback")
    assert 'the gate\'s limit "at most 20 % wrong" does not hold' in change.why


def test_a_fallback_ends_when_audits_show_promise_and_gate_again() -> None:
    watch = monitor(quantities=BOTH)
    until_changed(watch, True)
    assert [watch.record(False, certified=False) for _ in range(300)] == [None] * 300
    assert until_changed(watch, False).cause == "recovery"
    assert watch.mean(watch.watches[0]).n == 0


def promising(error: float | None = None, **limits: Any) -> Certificate:
    """Return a certificate of these limits; 4 % of its calibration answers could have been wrong."""
    guarantee = Guarantee(max_error=error, **limits)
    audited = {"error": {"person": error or 0.04, "large": error or 0.04}}
    if "max_accuracy_loss" in limits:
        audited["accuracy_loss"] = {"person": 0.08, "large": 0.1}
    return certificate(guarantee=guarantee, audit_limits=audited)


LIMITS: dict[str, tuple[Certificate, float, float]] = {
    "error": (promising(0.05), 0.05, 0.3),
    "accuracy_loss": (promising(max_accuracy_loss=0.02), 0.1, 0.4),
}
"""By limit: a guarantee of it alone, an error of audits that just keeps it, and one that does not."""


def watching(of: Certificate, judge: Judge = "large") -> Monitor:
    return monitor(quantities=watched_quantities(of, judge))


@pytest.mark.parametrize("limit", LIMITS)
def test_a_broken_limit_of_any_kind_raises_an_alarm_and_a_kept_one_seldom(limit: str) -> None:
    promise, kept, broken = LIMITS[limit]
    found = audited(watching(promise), broken, 3000)
    assert [(alarm.cause, alarm.after) for alarm in found[:1]] == [("guarantee", "fallback")]
    alarmed = sum(bool(audited(watching(promise), kept, 600, seed=seed)) for seed in range(60))
    assert alarmed <= 60 * (0.05 + 3 * 0.028)


def test_audits_by_the_large_model_are_tested_against_the_limit_of_the_certificate() -> None:
    printed = certificate(audit_limits={"error": {"person": 0.05, "large": 0.127}})
    (error,) = watched_quantities(printed, "large")
    assert error.limit == 0.127
    (by_person,) = watched_quantities(printed, "person")
    assert by_person.limit == 0.05
    alarmed = sum(bool(audited(watching(printed), 0.12, 500, seed=seed)) for seed in range(200))
    assert alarmed <= 200 * (0.05 + 3 * 0.016)


ROWS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), min_size=20, max_size=200)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.floats(0.01, 0.3))
def test_rows_that_keep_the_limit_on_accuracy_are_within_the_audit_limits(rows: list[Any], limit: float) -> None:
    kept, small, large, same = (np.array(column) for column in zip(*rows, strict=True))
    data = cascade([kept.astype(float)], [small], large_right=large)
    if (kept & large).sum() - (kept & small).sum() > limit * len(rows) or not kept.any():
        return
    found = audit_limits(data.outcome((0.5,)), kept, Guarantee(max_error=None, max_accuracy_loss=limit), 1.0)
    differs = kept & ((small != large) | (~small & ~large & ~same))
    assert differs.sum() / kept.sum() <= found["accuracy_loss"].get("large", 1.0)
    assert (kept & ~small).sum() / kept.sum() <= found["accuracy_loss"].get("person", 1.0)


def test_a_limit_that_nothing_can_test_is_named() -> None:
    unknown = certificate(guarantee=Guarantee(max_error=None, max_accuracy_loss=0.02), audit_limits={})
    assert not_watched(unknown, "large") == ("at most 2 points less accurate than the large model",)
    assert not_watched(LIMITS["accuracy_loss"][0], "large") == ()


def test_several_limits_share_the_chance_of_a_false_alarm() -> None:
    watch = watching(promising(0.05, max_accuracy_loss=0.02))
    assert [one.quantity.name for one in watch.watches] == ["error", "accuracy_loss"]
    assert {round(1 / (1 - one.test.confidence)) for one in watch.watches} == {round(2 * 20 * 4 / 3)}


def curve(*points: tuple[float, int, int]) -> tuple[ThresholdPoint, ...]:
    """A certificate's curve of (threshold, rows accepted, errors among them)."""
    values: dict[str, Any] = {"error_bound": 0.1, "routed_accuracy": 0.9, "routed_cost_usd_per_1k": 1.0}
    return tuple(ThresholdPoint(threshold=t, n_accepted=n, n_errors=e, **values) for t, n, e in points)


def test_uncertain_answers_have_a_larger_chance_whose_mean_is_the_share() -> None:
    found = allocate_audits(curve((1.1, 0, 0), (0.9, 180, 1), (0.8, 300, 3), (0.5, 400, 20), (0.2, 450, 50)), 0.5)
    assert (found.cuts, found.levels) == ((0.8,), (2.5, 1 / MAX_WEIGHT))
    assert (300 * found.levels[1] + 100 * found.levels[0]) / 400 == pytest.approx(1)


@pytest.mark.parametrize(
    "points", [(), ((1.1, 0, 0),), ((1.1, 30, 2), (0.5, 30, 2)), ((1.1, 0, 0), (0.9, 200, 0), (0.5, 400, 0))]
)
def test_where_confidence_does_not_part_errors_all_chances_are_equal(points: Any) -> None:
    assert allocate_audits(curve(*points), 0.5) == UNIFORM


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 1.0])
def test_a_chance_times_its_weight_is_the_rate(rate: float) -> None:
    allocation = AuditAllocation((0.6, 0.9), (3.0, 1.0, 0.5))
    for confidence in (None, 0.5, 0.6, 0.95):
        share, weight = allocation.draw(rate, confidence)
        assert 0 < share <= 1
        assert share * weight == pytest.approx(rate)
        assert weight <= MAX_WEIGHT
    assert UNIFORM.draw(rate, 0.3) == (rate, 1.0)
    assert allocation.draw(0.02, None).weight == 1
    shares = [allocation.draw(rate, confidence).propensity for confidence in (0.5, 0.6, 0.95)]
    assert (shares == [1.0] * 3) == (rate == 1)
    assert shares == sorted(shares, reverse=True)


def test_the_share_wrong_is_bounded_by_weighted_audits_and_tighter_where_all_weigh_the_same() -> None:
    equal, mixed = [(1.0, i < 3) for i in range(60)], [(1.5 if i % 2 else 0.5, i < 3) for i in range(60)]
    assert share_wrong(equal) == weighted_interval({(1.0, True): 3, (1.0, False): 57})
    assert share_wrong(mixed).value == pytest.approx((0.5 + 1.5 + 0.5) / 60)
    assert share_wrong(mixed).high > share_wrong(equal).high > 0.05
    assert share_wrong([(MAX_WEIGHT + 1e-12, True)]).n == 1  # rounded when it was written
