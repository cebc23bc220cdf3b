"""A machine is paid for idle time too, and its hour may be derived from purchase and power."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from smallfirst.pricing.machine import MachinePrice


def test_machine_is_paid_for_idle_time_too() -> None:
    # half an hour at $0.60 per hour, useful for half of the time: $0.30 of work costs $0.60
    price = MachinePrice(usd_per_hour=0.60, utilisation=0.5)
    assert price.cost_usd(1800) == pytest.approx(0.60)


def test_purchase_and_power_make_the_price_of_an_hour() -> None:
    # 8,766 dollars over 2 years of 8,766 hours: $0.50; 400 W at $0.25 a kWh: $0.10
    bought = MachinePrice(purchase_usd=8766, life_years=2, watts=400, usd_per_kwh=0.25)
    assert bought.usd_per_hour == pytest.approx(0.60)
    assert MachinePrice(purchase_usd=8766, life_years=2).usd_per_hour == pytest.approx(0.50)
    assert MachinePrice(watts=400, usd_per_kwh=0.25).usd_per_hour == pytest.approx(0.10)
    assert MachinePrice.model_validate_json(bought.model_dump_json()) == bought


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"utilisation": 0.0}, "greater than 0"),
        ({"utilisation": 1.1}, "less than or equal to 1"),
        ({"utilisation": float("nan")}, "less than or equal to 1"),
        ({"purchase_usd": 1000}, "purchase_usd and life_years belong together"),
        ({"watts": 300}, "watts and usd_per_kwh belong together"),
        ({"purchase_usd": 1000, "life_years": 0}, "life_years"),
        (
            {"purchase_usd": 8766, "life_years": 1, "usd_per_hour": 2},
            "usd_per_hour is 2, but purchase and power make 1",
        ),
    ],
)
def test_an_impossible_price_is_refused(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=rule):
        MachinePrice(**values)


def test_the_line_of_a_named_machine_says_which_it_was() -> None:
    line = MachinePrice(usd_per_hour=3.6, utilisation=1.0, name="gpu").charge("big", 2.0)
    assert (line.usd, line.machine, line.source) == (pytest.approx(0.002), "gpu", "prices.machines.gpu")
