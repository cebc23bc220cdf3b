"""Lines of a bill: what each piece of work for a request cost, at which price, from where and when."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from typing import Literal

from smallfirst.pricing.tokens import TokenUsage
from smallfirst.records import Record


class Charge(Record):
    """One line of the bill of a request: the work of one model, or one attempt that brought no answer."""

    model: str
    """Name of the model that worked."""
    purpose: Literal["answer", "draft", "audit", "attempt"] = "answer"
    """`draft`: a draft that was discarded · `audit`: a comparison that the client did not wait for · `attempt`: a
    request to an endpoint that brought no answer."""
    usd: float | None
    """None: it may have to be paid, and nobody knows how much."""
    basis: Literal["billed", "tokens", "machine time"] = "machine time"
    """`billed`: the cost that the provider's answer states · `tokens`: tokens at a price · `machine time`: busy seconds
    at the price of a machine of our own."""
    tokens: TokenUsage = TokenUsage()
    busy_s: float = 0.0
    """Seconds that a machine of our own worked."""
    machine: str = ""
    """Which machine that was, by its name under `prices.machines`; empty: the one under `prices.machine`."""
    tier: str = ""
    """The provider's tier of service: `batch`, `flex`, `priority`; empty: the usual one."""
    source: str = ""
    """Where the price was read: a settings file, a version of the catalogue, a field of the provider's answer."""
    price_date: datetime.date | None = None
    """Day from which that price is valid, or on which the catalogue was made; None if nobody says."""
    estimated: bool = False
    """True if tokens are estimated, since an answer was cut off."""


def total_usd(charges: Iterable[Charge]) -> float:
    """Return the sum of the costs that are known, in USD."""
    return math.fsum(charge.usd for charge in charges if charge.usd is not None)
