"""The price of a hosted model's tokens from a day on, as settings state it or the installed genai-prices package."""

from __future__ import annotations

import datetime
import functools
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field

from smallfirst.pricing.money import Usd
from smallfirst.pricing.tokens import TokenUsage
from smallfirst.records import Record

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TokenPrice(Record):
    """List price of a hosted model, in USD."""

    input_usd_per_mtok: Usd
    """USD per million prompt tokens."""
    output_usd_per_mtok: Usd
    """USD per million completion tokens."""
    cached_usd_per_mtok: Usd | None = None
    """USD per million prompt tokens that the seller has cached; left out: they cost what others do."""
    cache_write_usd_per_mtok: Usd | None = None
    """USD per million prompt tokens that the seller writes to its cache; left out: they cost what others do."""
    cache_write_1h_usd_per_mtok: Usd | None = None
    """The same where they are kept for an hour instead of minutes."""
    image_usd_per_mtok: Usd | None = None
    """USD per million prompt tokens of images; left out: they cost what others do."""
    reasoning_usd_per_mtok: Usd | None = None
    """USD per million reasoning tokens; left out: they cost what other completion tokens do."""
    usd_per_request: Usd = 0.0
    """USD per request, whatever its tokens."""
    tiers: dict[str, Factor] = {}
    """By tier of service (`batch`, `flex`, `priority`) the factor on all prices of tokens."""
    valid_from: datetime.date | None = None
    """First day of this price, in UTC; left out: since ever."""
    source: str = ""
    """Where the price was read, such as an address; left out: the file in which it stands."""

    def rates(self, tier: str = "") -> dict[str, float]:
        """Return USD per million tokens by kind, and per `request` if there is such a price. Raise KeyError."""
        factor, fresh, output = self.tiers[tier] if tier else 1.0, self.input_usd_per_mtok, self.output_usd_per_mtok
        write = _either(self.cache_write_usd_per_mtok, fresh)
        found = {
            "input": fresh,
            "cached": _either(self.cached_usd_per_mtok, fresh),
            "cache_write": write,
            "cache_write_1h": _either(self.cache_write_1h_usd_per_mtok, write),
            "image": _either(self.image_usd_per_mtok, fresh),
            "output": output,
            "reasoning": _either(self.reasoning_usd_per_mtok, output),
        }
        return {kind: usd * factor for kind, usd in found.items()} | {"request": self.usd_per_request}


def tokens_by_kind(tokens: TokenUsage) -> dict[str, int]:
    """Return the tokens by the kinds of `TokenPrice.rates`, none of them twice."""
    read, written = tokens.prompt_tokens, tokens.completion_tokens
    kept = min(tokens.cache_write_1h_tokens, tokens.cache_write_tokens)
    image = max(0, min(tokens.image_tokens, read - tokens.cached_tokens - tokens.cache_write_tokens))
    return {
        "input": max(0, read - tokens.cached_tokens - tokens.cache_write_tokens - image),
        "cached": tokens.cached_tokens,
        "cache_write": tokens.cache_write_tokens - kept,
        "cache_write_1h": kept,
        "image": image,
        "output": max(0, written - tokens.reasoning_tokens),
        "reasoning": tokens.reasoning_tokens,
    }


def _either(usd: float | None, other: float) -> float:
    return other if usd is None else usd


_KEYS = {
    "input_mtok": "input_usd_per_mtok",
    "output_mtok": "output_usd_per_mtok",
    "cache_read_mtok": "cached_usd_per_mtok",
    "cache_write_mtok": "cache_write_usd_per_mtok",
    "cache_write_1h_mtok": "cache_write_1h_usd_per_mtok",
    "input_image_mtok": "image_usd_per_mtok",
    "output_reasoning_mtok": "reasoning_usd_per_mtok",
}


class NotInCatalogue(Exception):
    """The catalogue has no such price; the message says why in a clause."""


def list_price(
    model: str, *, api_url: str | None, at: datetime.datetime, tier: str = "", prompt_tokens: int = 0
) -> TokenPrice:
    """Return the price of a prompt of so many tokens in a tier at a moment. Raise NotInCatalogue.

    The address names the seller for certain; without a known one the model's maker is taken as the seller. A price that
    the catalogue does not date has the day of its newest change: it was made then or later.
    """
    try:
        import genai_prices
    except ImportError:
        raise NotInCatalogue("the price catalogue genai-prices is not installed") from None
    catalogue = f"genai-prices {genai_prices.__version__}"
    entry = _entry(model, api_url)
    if entry is None:
        raise NotInCatalogue(f"{catalogue} does not know it either")
    provider, found = entry
    # A provider calls a tier by one of these; a name that no entry has changes nothing.
    context = dict.fromkeys(("processing", "service_tier", "speed"), tier) if tier else {}
    if tier and not any(_applies(variant, context, at) for variant in found.price_variants or ()):
        raise NotInCatalogue(f"{catalogue} has no price of {provider.id}/{found.id} in the tier {tier}")
    prices = found.get_prices(at, context)
    rates = {ours: _rate(getattr(prices, theirs), prompt_tokens) for theirs, ours in _KEYS.items()}
    if rates["input_usd_per_mtok"] is None and rates["output_usd_per_mtok"] is None:
        raise NotInCatalogue(f"{catalogue} has no price of its tokens")
    required = {name: rates[name] or 0.0 for name in ("input_usd_per_mtok", "output_usd_per_mtok")}
    return TokenPrice(
        **{**rates, **required},
        usd_per_request=(_rate(prices.requests_kcount, prompt_tokens) or 0.0) / 1000,
        tiers={tier: 1.0} if tier else {},
        valid_from=_valid_from(found.prices, at) or _newest_change(),
        source=f"{catalogue}: {provider.id}/{found.id}",
    )


@functools.lru_cache(maxsize=1024)
def _entry(model: str, api_url: str | None) -> tuple[Any, Any] | None:
    """Return the seller and its model; to find none takes a millisecond, too long for each line of a log."""
    from genai_prices.data_snapshot import get_snapshot

    for address in dict.fromkeys((api_url, None)):
        with suppress(LookupError):
            return get_snapshot().find_provider_model(model, None, None, address)
    return None


def _applies(variant: Any, context: dict[str, str], at: datetime.datetime) -> bool:
    active = variant.constraint is None or variant.constraint.active(at)
    return active and all(context.get(key) == value for key, value in variant.when.items())


def _rate(price: Any, prompt_tokens: int) -> float | None:
    """Return a price in USD; of one that depends on the prompt's length, the one for all tokens of this request."""
    tiers = getattr(price, "tiers", None)
    if tiers is not None:
        price = next((tier.price for tier in reversed(tiers) if prompt_tokens > tier.start), price.base)
    return None if price is None else float(price)


def _valid_from(prices: Any, at: datetime.datetime) -> datetime.date | None:
    """Return the first day of the price in force."""
    for entry in reversed(_listed(prices)):
        if entry.constraint is None or entry.constraint.active(at):
            return getattr(entry.constraint, "start_date", None)
    return None


@functools.cache
def _newest_change() -> datetime.date | None:
    """Return the newest day in the catalogue, those to come left out, on which a price begins."""
    from genai_prices.data_snapshot import get_snapshot

    entries = (e for p in get_snapshot().providers for m in p.models for e in _listed(m.prices))
    days = (getattr(entry.constraint, "start_date", None) for entry in entries)
    today = datetime.datetime.now(datetime.UTC).date()
    return max((day for day in days if day is not None and day <= today), default=None)


def _listed(prices: Any) -> list[Any]:
    return prices if isinstance(prices, list) else []
