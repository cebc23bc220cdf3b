"""Rent, busy and idle time of machines, by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from smallfirst.deployment.billing.saved import machine_costs
from smallfirst.ledger.sums import Sums
from smallfirst.models.pricing import MachinePrice, PriceBook

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


class TwoTasks:
    """A ledger in which two tasks kept a machine busy for 900 and 300 s of 2 hours, at a stated utilisation of 0.3."""

    def sums(self, *_: object, **__: object) -> tuple[Sums, ...]:
        """Sums by task and kind."""
        usd = 0.12 / 3600 / 0.3
        return (
            Sums(task="a", kind="answer", busy_s=600, machine_usd=600 * usd),
            Sums(task="a", kind="audit", busy_s=300, machine_usd=300 * usd),
            Sums(task="b", kind="answer", busy_s=300, machine_usd=300 * usd),
            Sums(task="a", kind="training", busy_s=5000, cost_usd=1.0),
        )

    def busy(self, *_: object) -> dict[str, float]:
        """Seconds busy by machine."""
        return {"": 1200.0}

    def uptime(self, *_: object) -> dict[str, float]:
        """Seconds up by machine."""
        return {"": 7200.0}


PRICES = PriceBook(machine=MachinePrice(usd_per_hour=0.12, utilisation=0.3))


def test_rows_and_what_they_do_not_carry_are_the_rent() -> None:
    (found,) = machine_costs(TwoTasks(), PRICES, NOON, NOON + timedelta(hours=2))  # type: ignore[arg-type]
    assert (found.utilisation, found.rent_usd) == (pytest.approx(1200 / 7200), pytest.approx(0.24))
    assert found.idle_usd == pytest.approx(0.24 * 6000 / 7200)
    assert found.charged_usd + found.uncharged_usd == pytest.approx(found.rent_usd)
    assert found.uncharged_usd == pytest.approx(0.24 - 0.04 / 0.3)


def test_a_task_carries_idle_time_in_proportion_to_its_work() -> None:
    parts = [
        machine_costs(TwoTasks(), PRICES, NOON, NOON + timedelta(hours=2), task=task)[0]  # type: ignore[arg-type]
        for task in ("a", "b")
    ]
    assert [one.up_s for one in parts] == [5400, 1800]
    assert sum(one.rent_usd for one in parts) == pytest.approx(0.24)
    assert [one.utilisation for one in parts] == pytest.approx([1 / 6, 1 / 6])


def test_a_use_far_from_the_stated_one_is_said_with_the_setting() -> None:
    (found,) = machine_costs(TwoTasks(), PRICES, NOON, NOON + timedelta(hours=2))  # type: ignore[arg-type]
    assert found.in_words == "up 2.0 h at $0.12, busy 16.67\xa0% of it; rent $0.24, of it idle $0.20"
    assert "set prices" not in found.model_copy(update={"stated_utilisation": 0.2}).in_words
    assert "set prices.machine.utilisation to 0.17" in found.model_copy(update={"stated_utilisation": 0.9}).in_words
