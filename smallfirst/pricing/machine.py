"""The price of a machine that runs models itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import Field

from smallfirst.pricing.charge import Charge
from smallfirst.pricing.money import Usd
from smallfirst.pricing.tokens import TokenUsage
from smallfirst.records import Record

HOURS_PER_YEAR = 8766


class MachinePrice(Record):
    """Price of a machine that runs models itself: by the hour, or from what it cost, its life and its power."""

    usd_per_hour: Usd = 0.10
    """Rent, or depreciation plus power. 0.10 is about what 2 shared cloud cores cost. Left out where `purchase_usd` is
    given: purchase over its life, and power."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the hour in which it does useful work, in (0, 1]; idle time is paid as well."""
    purchase_usd: Usd | None = None
    """What it cost to buy."""
    life_years: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Years after which it is worth nothing."""
    watts: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """What it draws on average, cooling included."""
    usd_per_kwh: Usd | None = None
    """Price of power."""
    name: str = ""
    """Its name under `prices.machines`; empty for `prices.machine`."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _derived(cls, values: Any) -> Any:
        """Derive the price of an hour from purchase and power."""
        if not isinstance(values, Mapping):
            return values
        parts = [values.get(name) for name in ("purchase_usd", "life_years", "watts", "usd_per_kwh")]
        if not any(isinstance(part, int | float) for part in parts):
            return values
        for one, other in (("purchase_usd", "life_years"), ("watts", "usd_per_kwh")):
            if (values.get(one) is None) != (values.get(other) is None):
                raise ValueError(f"{one} and {other} belong together: give both or neither")
        bought, life, watts, power = (float(part or 0) for part in parts)
        usd_per_hour = (bought / life / HOURS_PER_YEAR if life > 0 else 0.0) + watts / 1000 * power
        given = values.get("usd_per_hour")
        if isinstance(given, int | float) and not math.isclose(given, usd_per_hour, rel_tol=1e-9):
            raise ValueError(
                f"usd_per_hour is {given:g}, but purchase and power make {usd_per_hour:.6g}: leave one out"
            )
        return {**values, "usd_per_hour": usd_per_hour}

    def cost_usd(self, busy_s: float) -> float:
        """Return the cost in USD of `busy_s` busy seconds, idle time included."""
        return busy_s * self.usd_per_hour / 3600 / self.utilisation

    def charge(self, model: str, busy_s: float, tokens: TokenUsage | None = None) -> Charge:
        """Return the line of a bill for `busy_s` busy seconds of a model."""
        return Charge(
            model=model,
            usd=self.cost_usd(busy_s),
            busy_s=busy_s,
            tokens=tokens or TokenUsage(),
            machine=self.name,
            source=f"prices.machines.{self.name}" if self.name else "prices.machine",
            rates={"hour": self.usd_per_hour, "utilisation": self.utilisation},
        )
