"""What a guarantee limits is watched after go-live, against the limit that the certificate prints."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fixtures.certificates import cascade, certificate
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.models.protocol import Completion, Route, RouteStep
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import audit_limits
from smallfirst.routing.monitoring.monitor import Monitor, MonitorSettings, StateChange
from smallfirst.routing.monitoring.quantities import Judge, not_watched, watched_quantities

Stream = Callable[[random.Random, Monitor], object]


def promising(error: float | None = None, **limits: Any) -> Certificate:
    """Return a certificate of these limits; 4 % of its calibration answers could have been wrong."""
    guarantee = Guarantee(max_error=error, **limits)
    audited = {"error": {"person": error or 0.04, "large": error or 0.04}}
    if "max_accuracy_loss" in limits:
        audited["accuracy_loss"] = {"person": 0.08, "large": 0.1}
    return certificate(guarantee=guarantee, audit_limits=audited)


def monitor(of: Certificate, judge: Judge = "large") -> Monitor:
    return Monitor(MonitorSettings(), quantities=watched_quantities(of, judge), reference_confidence=())


def audits(rate: float) -> Stream:
    return lambda draw, watch: watch.record_audit(draw.random() < rate)


LIMITS: dict[str, tuple[Certificate, Stream, Stream]] = {
    "error": (promising(0.05), audits(0.05), audits(0.3)),
    "accuracy_loss": (promising(max_accuracy_loss=0.02), audits(0.1), audits(0.4)),
}
"""By limit: a guarantee of it alone, a stream that just keeps it, and one that does not."""


def run(of: Certificate, stream: Stream, seed: int, n: int) -> Monitor:
    draw, watch = random.Random(seed), monitor(of)
    for _ in range(n):
        stream(draw, watch)
    return watch


@pytest.mark.parametrize("limit", LIMITS)
def test_a_broken_limit_of_any_kind_raises_an_alarm_and_a_kept_one_seldom(limit: str) -> None:
    promise, kept, broken = LIMITS[limit]
    found = run(promise, broken, 0, 3000).alarms
    assert [(alarm.cause, alarm.after) for alarm in found[:1]] == [("guarantee", "fallback")]
    assert "does not hold" in found[0].why
    alarmed = sum(bool(run(promise, kept, seed, 600).alarms) for seed in range(60))
    assert alarmed <= 60 * (0.05 + 3 * 0.028)


def test_errors_that_are_not_limited_are_measured_and_raise_a_hint() -> None:
    watch = run(promising(max_wrong_fields=0.1), audits(0.9), 0, 20_000)
    assert (watch.state, watch.alarms, watch.live_error.n) == ("live", (), 20_000)
    assert watch.live_error.low > 0.88
    (hint,) = watch.hints
    assert (hint.cause, hint.values["audits"] < 20) == ("live_error", True)
    assert "hint, changes nothing" in hint.why
    assert run(promising(max_wrong_fields=0.1), audits(0.02), 0, 2000).hints == ()


def test_audits_by_the_large_model_are_tested_against_the_limit_of_the_certificate() -> None:
    printed = certificate(audit_limits={"error": {"person": 0.05, "large": 0.127}})
    (error,) = watched_quantities(printed, "large")
    assert error.limit == 0.127
    (by_person,) = watched_quantities(printed, "person")
    assert by_person.limit == 0.05
    alarmed = sum(bool(run(printed, audits(0.12), seed, 500).alarms) for seed in range(200))
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
    unknown = promising(max_accuracy_loss=0.02).model_copy(update={"audit_limits": {}})
    assert not_watched(unknown, "large") == ("at most 2 points less accurate than the large model",)
    assert not_watched(LIMITS["accuracy_loss"][0], "large") == ()


def test_several_limits_share_the_chance_of_a_false_alarm() -> None:
    watch = monitor(promising(0.05, max_accuracy_loss=0.02))
    assert [one.quantity.name for one in watch.watches] == ["error", "accuracy_loss"]
    assert {round(1 / (1 - one.test.confidence)) for one in watch.watches} == {round(2 * 20 * 4 / 3)}


def test_several_processes_share_the_chance_of_a_false_alarm_by_requests() -> None:
    """Each needs as many times the evidence; the first test of each of two quantities has 3/4 of half of 0.05."""
    found = []
    for processes in (1, 4):
        watch = monitor(promising(0.05, max_foreign_share=0.5).model_copy(update={"max_outside": 0.55}))
        watch.processes = processes
        while not (changes := watch.record_answer(seen(True))):
            pass
        assert changes[0].values["evidence"] >= changes[0].values["alarm_at"]
        assert changes[0].values["alarm_at"] == pytest.approx(processes / (0.025 * 3 / 4))
        found.append(watch.watches[1].test.n)
    assert found[0] < found[1]


def seen(outside: bool, stage: str = "small") -> Completion:
    step = RouteStep(stage="domain", decision="passed on", why="", score=0.99 if outside else 0.2, threshold=0.97)
    route = Route(stage=stage, why="", certified=False, trail=(step,))
    return Completion(text="a", answered_by="m", latency_ms=1, cost_usd=0, route=route)


def test_more_foreign_requests_than_the_promise_bears_raise_an_alarm_and_fewer_do_not() -> None:
    of = promising(0.05, max_foreign_share=0.5).model_copy(update={"max_outside": 0.55})
    assert [q.name for q in watched_quantities(of, "person")] == ["error", "foreign"]
    changes: dict[float, list[StateChange]] = {}
    for share in (0.5, 0.7):
        draw, watch = random.Random(1), monitor(of, "person")
        for _ in range(2000):
            outside = draw.random() < share
            found = watch.record_answer(seen(outside, "large" if outside else "small"))
            changes.setdefault(share, []).extend(found)
    assert changes[0.5] == []
    assert [(change.cause, change.after) for change in changes[0.7]] == [("foreign", "live")]
    assert "at most 50 % of requests foreign" in changes[0.7][0].why
    without = of.model_copy(update={"max_outside": None})
    assert "foreign" not in [q.name for q in watched_quantities(without, "person")]
