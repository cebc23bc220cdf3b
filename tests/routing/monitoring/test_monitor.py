"""The monitor: what changes its state, what it counts, and that quiet traffic changes nothing."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from smallfirst.errors import ConfigError
from smallfirst.records import parse_record
from smallfirst.routing.monitoring.audit_plan import AuditAllocation
from smallfirst.routing.monitoring.monitor import Monitor, MonitorSettings, StateChange
from smallfirst.routing.monitoring.quantities import Quantity

LABELS = [f"label {i}" for i in range(30)]


class Traffic:
    """Requests and audits with an error rate, a skew of the confidences and a favourite label."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = random.Random(seed + 500)
        self.error, self.power, self.favourite = 0.01, 0.3, 0.0

    def confidence(self) -> float:
        return float(self.draw.random() ** self.power)

    def label(self) -> str:
        return LABELS[7] if self.draw.random() < self.favourite else self.draw.choice(LABELS)

    def monitor(self, settings: MonitorSettings | None = None, *, shadow: bool = False) -> Monitor:
        """A monitor with 300 of these requests as reference."""
        return Monitor(
            settings or MonitorSettings(audit_share=0.1),
            quantities=[Quantity("error", 0.05, "at most 5 % wrong")],
            reference_confidence=[self.confidence() for _ in range(300)],
            reference_labels=[self.label() for _ in range(300)],
            shadow=shadow,
        )

    def send(self, monitor: Monitor, n: int) -> list[StateChange]:
        """The changes caused by n requests and the audits among them."""
        changes: list[StateChange] = []
        for _ in range(n):
            share = monitor.audit_share
            changes += monitor.observe(self.confidence(), None, self.label())
            if self.draw.random() < share:
                changes += monitor.record_audit(self.draw.random() < self.error)
        return changes


def test_quiet_traffic_changes_nothing() -> None:
    traffic = Traffic()
    monitor = traffic.monitor()
    assert traffic.send(monitor, 2000) == []
    assert (monitor.state, monitor.alarms, monitor.requests) == ("live", (), 2000)
    assert monitor.live_error.low <= 0.01 <= monitor.live_error.high
    assert 150 < monitor.live_error.n < 250


def test_a_broken_small_model_falls_back_and_returns_when_it_is_repaired() -> None:
    traffic = Traffic()
    monitor = traffic.monitor()
    traffic.send(monitor, 500)
    traffic.error = 0.4
    fell_back = monitor.moment = datetime.now(UTC)
    (broken,) = traffic.send(monitor, 400)
    assert (broken.before, broken.after, broken.cause) == ("live", "fallback", "guarantee")
    assert 500 < broken.at_request < 900
    assert broken.values["evidence"] >= broken.values["alarm_at"] == pytest.approx(20 * 4 / 3)
    assert f"{broken.values['errors']:.0f} of {broken.values['audits']:.0f} audited answers were wrong" in broken.why
    assert monitor.alarms == (broken,)
    assert monitor.audit_share == 0.1

    assert traffic.send(monitor, 2000) == []  # still broken
    assert monitor.live_error.low > 0.3
    before = monitor.live_error
    # An answer from before the fallback counts no longer.
    monitor.record_audit(False, answered_at=fell_back - timedelta(seconds=1))
    monitor.record_audit(False, weight=2.0)
    assert monitor.live_error == before
    monitor.record_audit(True, answered_at=fell_back)
    assert monitor.live_error.n == before.n + 1
    traffic.error = 0.01
    (back,) = _until_changed(traffic, monitor, 4000)
    assert (back.before, back.after, back.cause) == ("fallback", "live", "recovery")
    assert back.values["evidence"] >= back.values["alarm_at"] == pytest.approx(20)
    assert monitor.live_error.n == 0
    assert monitor.alarms == (broken,)

    traffic.error = 0.4
    (again,) = _until_changed(traffic, monitor, 1000)
    assert again.values["alarm_at"] == pytest.approx(80 * 4 / 3)


def _until_changed(traffic: Traffic, monitor: Monitor, most: int) -> list[StateChange]:
    for _ in range(most):
        if changes := traffic.send(monitor, 1):
            return changes
    return []


def test_without_recovery_a_fallback_is_for_good() -> None:
    monitor = Traffic().monitor(MonitorSettings(recover=False))
    assert [change.after for _ in range(40) for change in monitor.record_audit(True)] == ["fallback"]
    assert [change for _ in range(500) for change in monitor.record_audit(False)] == []
    assert monitor.state == "fallback"
    assert (monitor.live_error.n, monitor.live_error.value < 0.1) == (540 - monitor.alarms[0].values["audits"], True)


def test_changed_confidences_bring_more_audits_until_these_show_the_guarantee() -> None:
    traffic = Traffic()
    monitor = traffic.monitor(MonitorSettings(audit_share_on_drift=0.5))
    traffic.send(monitor, 300)
    traffic.power = 1.0
    (drift,) = _until_changed(traffic, monitor, 500)
    assert (drift.before, drift.after, drift.cause) == ("live", "drift", "confidence")
    assert monitor.audit_share == 0.5
    assert "mean confidence" in drift.why
    # Two statistics are watched, and the first alarm of each has half of its chance: 0.05 / 2 / 2.
    assert drift.values["evidence"] >= drift.values["alarm_at"] == pytest.approx(80)

    (shown,) = _until_changed(traffic, monitor, 3000)
    assert (shown.before, shown.after, shown.cause) == ("drift", "live", "recovery")
    assert monitor.audit_share == 0.02
    assert traffic.send(monitor, 1000) == []  # what was new is now usual
    traffic.power = 0.3
    (back,) = _until_changed(traffic, monitor, 500)
    assert back.cause == "confidence"
    assert back.values["alarm_at"] == pytest.approx(160)


def test_traffic_that_concentrates_on_a_label_is_named_and_can_fall_back_at_once() -> None:
    traffic = Traffic()
    monitor = traffic.monitor(MonitorSettings(on_drift="fallback"))
    traffic.favourite = 0.5
    (drift,) = _until_changed(traffic, monitor, 300)
    assert (drift.after, drift.cause) == ("fallback", "label")
    assert "share of the answer 'label 7'" in drift.why
    # 300 requests become the new reference; then another drift, on top of the fallback, makes proof begin anew.
    assert traffic.send(monitor, 300) == []
    assert monitor.live_error.n > 0
    traffic.favourite = 0.0
    (more,) = _until_changed(traffic, monitor, 300)
    assert (more.before, more.after, more.cause) == ("fallback", "fallback", "label")
    assert monitor.alarms == (drift, more)


def test_the_share_rises_while_audits_look_bad_and_until_the_reserve_is_spent() -> None:
    monitor = Traffic().monitor(MonitorSettings(audit_share=0.02, audit_reserve=3))
    assert monitor.audit_share == 0.02
    for _ in range(2):
        monitor.record_audit(True)
    assert (monitor.state, monitor.audit_share) == ("live", 0.1)
    for _ in range(40):
        monitor.plan_audit(0.9)
    assert monitor.audit_share == pytest.approx(0.018)
    for _ in range(60):
        monitor.record_audit(False)
    assert monitor.audit_share == pytest.approx(0.018)
    for _ in range(2000):
        monitor.plan_audit(0.9)
    assert monitor.audit_share == 0.02
    steady = Traffic().monitor(MonitorSettings(audit_share=0.02, audit_reserve=0))
    for _ in range(2):
        steady.record_audit(True)
    assert steady.audit_share == 0.02


def test_only_live_answers_have_chances_by_confidence_and_a_setting_turns_them_off() -> None:
    settings = MonitorSettings(audit_share=0.1, audit_share_in_fallback=0.1)
    for chosen, expected in ((settings, 0.1 * 1.9), (settings.model_copy(update={"audit_by_uncertainty": False}), 0.1)):
        monitor = Monitor(
            chosen,
            quantities=[Quantity("error", 0.05, "at most 5 % wrong")],
            reference_confidence=(),
            allocation=AuditAllocation((0.7,), (2.0, 0.5)),
        )
        assert monitor.plan_audit(0.6).propensity == pytest.approx(expected)
        assert monitor.plan_audit(None).propensity == pytest.approx(0.1)
        monitor.resume("fallback")
        assert monitor.plan_audit(0.6) == (0.1, 1.0)


def test_the_live_error_and_an_alarm_count_audits_by_their_weights() -> None:
    monitor = Traffic().monitor()
    for wrong, weight in ((True, 0.5), (True, 0.5), (False, 2.0)):
        monitor.record_audit(wrong, weight=weight)
    assert monitor.live_error.value == pytest.approx(1 / 3)
    changes = [change for _ in range(20) for change in monitor.record_audit(True, weight=0.5)]
    assert [change.after for change in changes] == ["fallback"]
    assert "% of all by their weights" in changes[0].why


def test_in_shadow_audits_only_count() -> None:
    traffic = Traffic()
    monitor = traffic.monitor(shadow=True)
    traffic.error, traffic.favourite = 0.5, 0.9
    assert monitor.audit_share == 1.0
    assert traffic.send(monitor, 500) == []
    assert (monitor.state, monitor.live_error.n, monitor.alarms) == ("shadow", 500, ())


def test_a_recorded_state_is_resumed() -> None:
    monitor = Traffic().monitor()
    for _ in range(20):
        monitor.record_audit(False)
    monitor.resume("live")
    assert monitor.live_error.n == 20  # nothing to take up
    monitor.resume("fallback")
    assert (monitor.state, monitor.live_error.n, monitor.alarms) == ("fallback", 0, ())
    assert "live" in [change.after for _ in range(200) for change in monitor.record_audit(False)]
    assert [change.after for _ in range(20) for change in monitor.record_audit(True)] == ["fallback"]
    monitor.resume("live")  # the broken test must not fire at once
    assert monitor.record_audit(False) == ()
    assert monitor.state == "live"


def test_unknown_values_are_not_counted() -> None:
    monitor = Traffic().monitor()
    for _ in range(1000):
        assert monitor.observe(None) == ()
    assert monitor.requests == 1000


def test_the_same_requests_and_audits_give_the_same_monitor() -> None:
    changes = []
    for _ in range(2):
        traffic = Traffic(3)
        monitor = traffic.monitor()
        traffic.error, traffic.power = 0.3, 0.6
        changes.append((traffic.send(monitor, 800), monitor.live_error))
    assert changes[0] == changes[1]
    assert changes[0][0]


def test_the_false_alarm_rate_stays_positive_after_many_alarms() -> None:
    # It is halved with each further test.
    monitor = Monitor(
        MonitorSettings(confidence=0.6), quantities=[Quantity("error", 0.5, "half")], reference_confidence=()
    )
    for _ in range(60):
        while monitor.state == "live":
            monitor.record_audit(True)
        while monitor.state == "fallback":
            monitor.record_audit(False)
    assert len(monitor.alarms) == 60


def test_false_alarms_in_quiet_lives_stay_below_their_bound() -> None:
    """The hardest quiet case: an error at the limit. Both budgets 20 %, so 40 % of lives at most may have an alarm."""
    settings = MonitorSettings(audit_share=0.3, audit_share_on_drift=0.3, confidence=0.8, drift_confidence=0.8)
    lives, with_alarm = 60, {"guarantee": 0, "drift": 0}
    for seed in range(lives):
        traffic = Traffic(seed)
        monitor = traffic.monitor(settings)
        traffic.error = 0.05
        traffic.send(monitor, 400)
        causes = {alarm.cause for alarm in monitor.alarms}
        with_alarm["guarantee"] += "guarantee" in causes
        with_alarm["drift"] += bool(causes - {"guarantee"})
    assert max(with_alarm.values()) / lives <= 0.2 + 3 * 0.052


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"audit_share": 0.0}, "audit_share: Input should be greater than 0"),
        ({"audit_share": 1.5}, "audit_share: Input should be less than or equal to 1"),
        ({"confidence": 0.4}, "confidence: Input should be greater than 0.5"),
        ({"audit_share": 0.2}, "audit_share_on_drift (0.1) is below audit_share (0.2)"),
        ({"audit_shares": 0.2}, "did you mean"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_record(MonitorSettings, values, where="task.yaml")
    assert message in str(refused.value)


def test_a_limit_outside_0_and_1_is_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        Monitor(MonitorSettings(), quantities=[Quantity("error", 0.0, "none wrong")], reference_confidence=[0.5])


def test_several_processes_share_the_chance_of_a_false_drift_alarm() -> None:
    """Each needs as many times the evidence; the level of one statistic and its first test is 0.05 / 2."""
    reference = [0.9 + 0.001 * (i % 97) for i in range(400)]
    found = []
    for processes in (1, 4):
        monitor = Monitor(MonitorSettings(), quantities=(), reference_confidence=reference)
        monitor.processes = processes
        while not (changes := monitor.observe(0.5)):
            pass
        (alarm,) = changes
        assert alarm.values["evidence"] >= alarm.values["alarm_at"] == pytest.approx(40 * processes)
        found.append(monitor.requests)
    assert found[0] < found[1]


def both() -> Monitor:
    """A monitor of a promise about a part of the answers and of a gate about all."""
    limits = [
        Quantity("error", 0.05, "at most 5 % wrong"),
        Quantity("accuracy", 0.2, "at most 20 % wrong", promised=False, by_gate=True),
    ]
    return Monitor(MonitorSettings(), quantities=limits, reference_confidence=())


def test_answers_without_a_promise_test_the_gate_alone() -> None:
    monitor = both()
    for i in range(200):
        assert monitor.record_audit(i % 7 == 0, certified=False) == ()
    assert (monitor.live_error.n, monitor.state) == (0, "live")
    error, accuracy = monitor.watches
    assert (monitor.mean(error).n, monitor.mean(accuracy).n) == (0, 200)
    while monitor.state == "live":
        changes = monitor.record_audit(True, certified=False)
    assert (changes[0].cause, changes[0].after) == ("guarantee", "fallback")
    assert 'the gate\'s limit "at most 20 % wrong" does not hold' in changes[0].why
    assert monitor.broken == ()  # nothing that is promised


def test_a_fallback_ends_when_audits_show_promise_and_gate_again() -> None:
    monitor = both()
    while monitor.state == "live":
        monitor.record_audit(True)
    for _ in range(300):
        assert monitor.record_audit(False, certified=False) == ()
    while monitor.state == "fallback":
        changes = monitor.record_audit(False)
    assert changes[0].cause == "recovery"
    assert monitor.mean(monitor.watches[0]).n == 0
