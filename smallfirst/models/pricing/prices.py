"""Prices of hosted tokens and of machine time, by model, day and tier. An unknown price is an error, never $0.

A PriceBook looks in the prices of the settings file, then in the `file` that these name, then in the catalogue inside
the installed genai-prices package, which is as old as that version, and raises PriceUnknown if none has the model.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from smallfirst.base.errors import ConfigError, PriceUnknown, did_you_mean
from smallfirst.base.records import ONE, SEVERAL, Record, parse_record, read_yaml
from smallfirst.models.pricing.charge import Charge
from smallfirst.models.pricing.tokens import TokenUsage

Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MachinePrice(Record):
    """Price of a machine that runs models itself."""

    usd_per_hour: Usd = 0.10
    """Rent, or depreciation plus power. 0.10 is about what 2 shared cloud cores cost."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the hour in which it does useful work, in (0, 1]; idle time is paid as well."""
    name: str = ""
    """Its name under `prices.machines`; empty for `prices.machine`."""

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
    tiers: dict[str, Usd] = {}
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


_Price = Annotated[
    Annotated[TokenPrice, pydantic.Tag(ONE)] | Annotated[tuple[TokenPrice, ...], pydantic.Tag(SEVERAL)],
    pydantic.Discriminator(lambda price: SEVERAL if isinstance(price, list | tuple) else ONE),
]


class PriceBook(Record):
    """The prices of a project."""

    tokens: dict[str, _Price] = {}
    """Prices by model name, which take precedence over the catalogue: one, or a list of them with `valid_from`."""
    file: Path | None = None
    """File of further prices in this shape, which projects can share, beside the settings file; own entries come first.
    """
    machine: MachinePrice = MachinePrice()
    """Price of local work."""
    machines: dict[str, MachinePrice] = {}
    """Prices of further machines of one's own by name, which an endpoint's `machine` names."""
    usd_per_label: Usd | None = None
    """What a person's label costs, for "cannot be told yet"."""
    source: str = "task.yaml"
    """File in which the prices stand; set when it is read."""

    @pydantic.field_validator("machines")
    @classmethod
    def _named(cls, machines: dict[str, MachinePrice]) -> dict[str, MachinePrice]:
        return {name: price.model_copy(update={"name": name}) for name, price in machines.items()}

    def machine_named(self, name: str) -> MachinePrice:
        """Return the price of one of `machines`, or of `machine` for an empty name. Raise ConfigError."""
        if name and name not in self.machines:
            told = did_you_mean(name, self.machines)
            raise ConfigError(f'{self.source}: no machine "{name}" under prices.machines{told}')
        return self.machines[name] if name else self.machine

    def charge(
        self,
        model: str,
        tokens: TokenUsage,
        *,
        at: datetime.datetime | None = None,
        tier: str = "",
        api_url: str | None = None,
    ) -> Charge:
        """Return the line of a bill for one hosted call at a moment, now if left out. Raise PriceUnknown.

        `api_url` identifies the seller, `tier` is the provider's tier of service.
        """
        at = at or datetime.datetime.now(datetime.UTC)
        price = self._own(model, at, tier)
        if price is None:
            try:
                price = list_price(model, api_url=api_url, at=at, tier=tier, prompt_tokens=tokens.prompt_tokens)
            except NotInCatalogue as error:
                raise self._unknown(model, f"it is not under `prices`, and {error}") from None
        rates, counts = price.rates(tier), {**tokens_by_kind(tokens), "request": 1_000_000}
        used = {kind: usd for kind, usd in rates.items() if counts[kind] and (usd or kind != "request")}
        return Charge(
            model=model,
            usd=math.fsum(usd * counts[kind] for kind, usd in used.items()) / 1_000_000,
            basis="tokens",
            tokens=tokens,
            tier=tier,
            source=price.source or self.source,
            price_date=price.valid_from,
            rates=used,
        )

    def source_of(self, model: str, *, api_url: str | None = None) -> str:
        """Return where the token price of `model` comes from, in words. Raise PriceUnknown."""
        return self.charge(model, TokenUsage(), api_url=api_url).source

    def _own(self, model: str, at: datetime.datetime, tier: str) -> TokenPrice | None:
        """Return the settings' own price at a moment. Raise PriceUnknown if it has none for that day or that tier."""
        entry = self.tokens.get(model)
        if entry is None:
            return None
        entries = (entry,) if isinstance(entry, TokenPrice) else entry
        day = at.astimezone(datetime.UTC).date()
        begun = [one for one in entries if one.valid_from is None or one.valid_from <= day]
        if not begun:
            raise self._unknown(model, f"none under `prices` is valid on {day}", more="valid_from: …")
        price = max(begun, key=lambda one: one.valid_from or datetime.date.min)
        if tier and tier not in price.tiers:
            raise self._unknown(model, f"under `prices` it has no tier {tier}", more=f"tiers: {{{tier}: …}}")
        return price

    def _unknown(self, model: str, why: str, *, more: str = "") -> PriceUnknown:
        name = json.dumps(model, ensure_ascii=False)
        lines = ["prices:", "  tokens:", f"    {name}:", "      input_usd_per_mtok: …", "      output_usd_per_mtok: …"]
        lines += [f"      {more}"] * bool(more)
        where = f"add its price to {self.source}, in USD per million tokens:"
        return PriceUnknown(f"no price for {name}: {why}", hint="\n  ".join([where, *lines]))


def with_price_file(values: Any, settings_file: Path) -> Any:
    """Return the `prices` of a settings file as read, with those of the `file` that they name. Raise ConfigError."""
    if not isinstance(values, Mapping):
        return {"source": settings_file.name} if values is None else values
    own = {**values, "source": settings_file.name}
    if not isinstance(name := own.get("file"), str):
        return own
    path = settings_file.parent / name
    shared = read_yaml(path, hint="prices.file names it")
    parse_record(PriceBook, {**shared, "source": path.name}, where=str(path))  # its own mistakes are named as its own
    merged = {part: {**(shared.get(part) or {}), **(own.get(part) or {})} for part in ("tokens", "machines")}
    for model, price in (shared.get("tokens") or {}).items():
        if merged["tokens"][model] is price:
            listed = price if isinstance(price, list) else [price]
            merged["tokens"][model] = [{"source": path.name, **one} for one in listed]
    return {**shared, **own, **merged}


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
