"""Machines of our own as they were used: rent while a server was up, the part that worked, and what the rows carry.

An answer is charged when it is given, at the utilisation that `prices` states. Only afterwards is it known how much
the machine worked: `uncharged_usd` is what is missing then, so that rows and it together are the rent.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import computed_field

from smallfirst.pricing.money import format_usd
from smallfirst.pricing.prices import PriceBook
from smallfirst.records import Record
from smallfirst.report.formats import percent
from smallfirst.serving.ledger.ledger import Ledger


class MachineCost(Record):
    """What a machine cost over a time, and what of it was used."""

    machine: str = ""
    """Its name under `prices.machines`; empty: the one under `prices.machine`."""
    usd_per_hour: float
    up_s: float
    """Seconds for which it served; of several tasks, the part that this task's busy seconds are of all."""
    busy_s: float
    """Seconds for which models worked on answers and audits."""
    stated_utilisation: float
    """Utilisation at which answers are charged, in (0, 1]."""
    charged_usd: float
    """Machine time that the rows carry."""
    part: float = 1.0
    """Part of the machine that is counted here, in [0, 1]."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def utilisation(self) -> float | None:
        """Busy seconds over seconds up, at most 1; None if it was never up."""
        return min(1.0, self.busy_s / self.up_s) if self.up_s else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def rent_usd(self) -> float:
        """Cost of the hours for which it was up, or for which it worked if those are more."""
        return max(self.up_s, self.busy_s) / 3600 * self.usd_per_hour

    @computed_field  # type: ignore[prop-decorator]
    @property
    def idle_usd(self) -> float:
        """Part of the rent in which it did nothing."""
        return self.rent_usd - self.busy_s / 3600 * self.usd_per_hour

    @computed_field  # type: ignore[prop-decorator]
    @property
    def uncharged_usd(self) -> float:
        """Rent that no row carries; negative if it worked more than stated, so that the rows carry too much."""
        return self.rent_usd - self.charged_usd if self.up_s else 0.0

    @property
    def in_words(self) -> str:
        """Hours, use and rent; and the setting to change where answers are charged at a use far from the observed."""
        if (used := self.utilisation) is None:
            return f"busy {self.busy_s / 3600:,.2f} h, which answers carry at {percent(self.stated_utilisation)} use"
        hours = f"up {self.up_s / 3600:,.1f} h at {format_usd(self.usd_per_hour)}, busy {percent(used, digits=2)} of it"
        rent = f"rent {format_usd(self.rent_usd)}, of it idle {format_usd(self.idle_usd)}"
        if not used or 0.5 < used / self.stated_utilisation < 2:
            return f"{hours}; {rent}"
        advice = f"answers are charged as if it were {percent(self.stated_utilisation, digits=0)}"
        return f"{hours} ({advice}: set prices.machine.utilisation to {used:.2g}); {rent}"


def machine_costs(
    ledger: Ledger, prices: PriceBook, since: datetime, until: datetime, *, task: str | None = None
) -> tuple[MachineCost, ...]:
    """Return what machines that served in [since, until) cost, and what of it was used; with `task` its part alone.

    Idle time of a machine that several tasks share is theirs in proportion to their busy seconds. What the rows carry
    is divided among several machines by busy seconds at their prices.
    """
    sums = ledger.sums(since, until, by=("task", "kind"), latencies=False)
    rows = [row for row in sums if row.kind in ("answer", "audit")]
    own = [row for row in rows if task in (None, row.task)]
    busy_s = sum(row.busy_s for row in rows)
    part = sum(row.busy_s for row in own) / busy_s if busy_s else 1.0
    up, busy = ledger.uptime(since, until), ledger.busy(since, until)
    price = {name: prices.machines.get(name, prices.machine) for name in {**up, **busy}}
    stated = {name: price[name].cost_usd(seconds) for name, seconds in busy.items()}
    charged = sum(row.machine_usd for row in own) / (sum(stated.values()) or 1.0)
    return tuple(
        MachineCost(
            machine=name,
            usd_per_hour=of.usd_per_hour,
            up_s=up.get(name, 0.0) * part,
            busy_s=busy.get(name, 0.0) * part,
            stated_utilisation=of.utilisation,
            charged_usd=stated.get(name, 0.0) * charged,
            part=part,
        )
        for name, of in sorted(price.items())
    )
