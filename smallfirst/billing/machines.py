"""Machines of our own as they were used: rent while a server was up, the part that worked, and what the rows carry.

An answer is charged when it is given, at the utilisation that `prices` states. Only afterwards is it known how much
the machine worked: `uncharged_usd` is what is missing then, so that rows and it together are the rent.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import computed_field

from smallfirst.pricing.machine import MachinePrice
from smallfirst.pricing.prices import PriceBook
from smallfirst.records import Record
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
    """Utilisation at which answers were charged, in (0, 1]."""
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


def machine_costs(
    ledger: Ledger, prices: PriceBook, since: datetime, until: datetime, *, task: str | None = None
) -> tuple[MachineCost, ...]:
    """Return what machines that served in [since, until) cost, and what of it was used; with `task` its part alone.

    Idle time of a machine that several tasks share is theirs in proportion to their busy seconds.
    """
    by_task: dict[str, tuple[float, float]] = {}
    for row in ledger.sums(since, until, by=("task", "kind")):
        if row.kind in ("answer", "audit"):
            busy_s, usd = by_task.get(row.task, (0.0, 0.0))
            by_task[row.task] = (busy_s + row.busy_s, usd + row.machine_usd)
    wanted = {name: sums for name, sums in by_task.items() if task in (None, name)}
    busy_s, all_s = (sum(seconds for seconds, _ in some.values()) for some in (wanted, by_task))
    charged = sum(usd for _, usd in wanted.values())
    up = ledger.uptime(since, until)
    part = busy_s / all_s if all_s else 1.0
    found = []
    for name, up_s in sorted(up.items() or {"": 0.0}.items()):
        price = _price(prices, name)
        # Busy seconds of several machines are told apart by how long each was up.
        share = up_s / sum(up.values()) if sum(up.values()) else 1.0
        found.append(
            MachineCost(
                machine=name,
                usd_per_hour=price.usd_per_hour,
                up_s=up_s * part,
                busy_s=busy_s * share,
                stated_utilisation=price.utilisation,
                charged_usd=charged * share,
                part=part,
            )
        )
    return tuple(one for one in found if one.up_s or one.busy_s)


def _price(prices: PriceBook, name: str) -> MachinePrice:
    named: dict[str, MachinePrice] = getattr(prices, "machines", {})
    return named.get(name, prices.machine)
