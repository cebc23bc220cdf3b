"""How many machines a number of requests takes, and whether they are cheaper than the large model's API."""

from __future__ import annotations

import math

from smallfirst.base.records import Record
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.models.pricing import MachinePrice, format_usd
from smallfirst.path.report.formats import count, percent
from smallfirst.path.report.measures import HOURS_PER_MONTH, large_part_usd_per_1k


class Capacity(Record):
    """Machines for the busiest hour, and a month of them beside a month of the API."""

    requests_per_month: float
    requests_per_s: float
    """What one machine answers, as measured."""
    source: str
    """Where that figure comes from."""
    peak_per_s: float
    """Requests a second in the busiest hour."""
    machines: int
    machines_usd: float
    """Rent of a month, whether used or not."""
    share_large: float
    """Part of the requests that the large model answers, in [0, 1]."""
    large_usd: float | None
    """What the large model bills for them in a month; None where it was not evaluated."""
    api_usd: float | None
    """What it would bill for all requests of a month; None where it was not evaluated."""
    keep_api: bool
    """True if the large model alone costs no more."""

    @property
    def in_words(self) -> tuple[str, ...]:
        """A line for the demand, the machines, the money and the verdict."""
        used = self.peak_per_s / self.requests_per_s / self.machines
        number = f"{count(self.machines)} machine{'s' * (self.machines > 1)}"
        lines = (
            f"{self.requests_per_month:,.0f} requests a month, {self.peak_per_s:,.3g}/s in the busiest hour",
            f"{number}, {percent(used, digits=0)} used in that hour: one answers {self.requests_per_s:,.3g}/s "
            f"({self.source})",
        )
        rent = f"{format_usd(self.machines_usd)} a month of rent"
        if self.large_usd is None or self.api_usd is None:
            return (*lines, f"{rent}; the large model was not evaluated, its bill is unknown")
        return (
            *lines,
            f"{rent}, {format_usd(self.large_usd)} the large model's for {percent(self.share_large)} of the requests; "
            f"it alone would bill {format_usd(self.api_usd)}",
            "verdict: keep the API" if self.keep_api else f"verdict: take {number}",
        )


def capacity(
    requests_per_month: float,
    price: MachinePrice,
    *,
    requests_per_s: float,
    source: str,
    routed: Evaluation | None = None,
    large: Evaluation | None = None,
    peak: float = 3.0,
    headroom: float = 2.0,
) -> Capacity:
    """Return the machines of one price for so many requests; `routed` and `large` are evaluations of the same rows.

    `requests_per_s` is what one machine was measured to answer, `source` says where. `peak` is the rate of the busiest
    hour over the mean rate, `headroom` what the machines could answer over that, at least. Without `routed` nothing
    goes on to the large model.
    """
    peak_per_s = requests_per_month / (HOURS_PER_MONTH * 3600) * peak
    machines = max(1, math.ceil(peak_per_s * headroom / requests_per_s))
    machines_usd = machines * price.usd_per_hour * HOURS_PER_MONTH
    large_usd = api_usd = None
    if large:
        api_usd = requests_per_month * large.cost_usd_per_1k / 1000
        large_usd = requests_per_month * large_part_usd_per_1k(routed, large) / 1000 if routed else 0.0
    return Capacity(
        requests_per_month=requests_per_month,
        requests_per_s=requests_per_s,
        source=source,
        peak_per_s=peak_per_s,
        machines=machines,
        machines_usd=machines_usd,
        share_large=routed.share("large") if routed else 0.0,
        large_usd=large_usd,
        api_usd=api_usd,
        keep_api=api_usd is not None and api_usd <= machines_usd + (large_usd or 0.0),
    )
