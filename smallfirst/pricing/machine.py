"""The price of a machine that runs models itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from smallfirst.pricing.charge import Charge
from smallfirst.pricing.money import Usd
from smallfirst.pricing.tokens import TokenUsage
from smallfirst.records import Record


class MachinePrice(Record):
    """Price of a machine that runs models itself."""

    usd_per_hour: Usd = 0.10
    """Rent or depreciation plus power. 0.10 is about what 2 shared cloud cores cost."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the hour in which it does useful work, in (0, 1]; idle time is paid as well."""

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
            source="prices.machine",
            rates={"hour": self.usd_per_hour, "utilisation": self.utilisation},
        )
