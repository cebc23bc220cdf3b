"""Lines of a bill: what each piece of work for a request cost, at which price, from where and when."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from typing import Any, Literal

from smallfirst.base.records import Record
from smallfirst.models.pricing.tokens import TokenUsage

Purpose = Literal["answer", "draft", "audit", "attempt"]


class Charge(Record):
    """One line of the bill of a request: the work of one model, or one attempt that brought no answer."""

    model: str
    """Name of the model that worked."""
    purpose: Purpose = "answer"
    """`draft`: a draft that was discarded, and the look at the request before it · `audit`: a comparison that the
    client did not wait for · `attempt`: work that brought no answer: cut off, failed, or not in the format."""
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
    rates: dict[str, float] = {}
    """That price in USD: per million tokens by kind (`input`, `cached`, `cache_write`, `image`, `output`,
    `reasoning`), per `request`, or per machine `hour` with its `utilisation`."""
    estimated: bool = False
    """True if tokens are estimated, since an answer was cut off."""

    @property
    def in_words(self) -> str:
        """The line as a sentence without its end."""
        cost = "unknown cost" if self.usd is None else format_usd(self.usd)
        tokens, made = self.tokens, []
        if self.busy_s:
            made.append(f"{self.busy_s:.3g} s of {self.machine or 'this machine'}")
        if tokens.prompt_tokens or tokens.completion_tokens:
            cached = f" ({tokens.cached_tokens:,} cached)" if tokens.cached_tokens else ""
            made.append(f"{tokens.prompt_tokens:,} tokens read{cached}, {tokens.completion_tokens:,} written")
        at = f" at {_in_words(self.rates)}" if self.rates else ""
        dated = f" of {self.price_date}" if self.price_date else ""
        tier, guess = f", {self.tier} tier" if self.tier else "", ", estimated" if self.estimated else ""
        where = f" ({self.source}{dated})" if self.source else ""
        return f"{cost} for {self.purpose} by {self.model}: {', '.join(made) or 'stated'}{tier}{guess}{at}{where}"


def _in_words(rates: dict[str, float]) -> str:
    if "hour" in rates:
        return f"${rates['hour']:g} an hour, {rates.get('utilisation', 1.0):.0%} of it used"
    tokens = ", ".join(f"{kind} {usd:g}" for kind, usd in rates.items() if kind != "request")
    return f"USD per million tokens: {tokens}" + (f"; ${rates['request']:g} a request" if "request" in rates else "")


def total_usd(charges: Iterable[Charge]) -> float:
    """Return the sum of the costs that are known, in USD."""
    return math.fsum(charge.usd for charge in charges if charge.usd is not None)


def known_usd(charges: Iterable[Charge]) -> float | None:
    """Return the same sum; None if there are lines and no cost of any is known."""
    lines = tuple(charges)
    return None if lines and all(line.usd is None for line in lines) else total_usd(lines)


def with_purpose(charges: Iterable[Charge], purpose: Purpose) -> tuple[Charge, ...]:
    """Return the lines of an answer as ones of another purpose; those that have another already keep it."""
    return tuple(line.model_copy(update={"purpose": purpose}) if line.purpose == "answer" else line for line in charges)


def stated(model: str, usd: float | None, *, source: str = "stated by the model", **known: Any) -> Charge:
    """Return the line of a cost that is stated without saying how it came about."""
    return Charge(model=model, usd=usd, basis="billed", source=source, **known)


def itemized(model: str, usd: float, charges: tuple[Charge, ...] = ()) -> tuple[Charge, ...]:
    """Return the lines of a cost; one line where it is stated alone, none for 0."""
    return charges or ((stated(model, usd),) if usd else ())


def charges_json(charges: Iterable[Charge]) -> str | None:
    """Return the lines as the ledger keeps them, or None without any."""
    lines = [line.model_dump_json(exclude_defaults=True) for line in charges]
    return f"[{','.join(lines)}]" if lines else None


def format_usd(amount: float, significant: int = 2) -> str:
    """Return an amount in USD: cents from a dollar up, so many significant digits below."""
    if amount < 0:
        return f"−{format_usd(-amount, significant)}"
    if amount >= 99.5:
        return f"${amount:,.0f}"
    if amount >= 0.995 or amount == 0:
        return f"${amount:.2f}"
    # 0.0028 and never 2.8e-03.
    digits = significant
    while round(amount, digits) < 10 ** (significant - 1 - digits) and digits < 9:
        digits += 1
    return f"${amount:.{digits}f}"
