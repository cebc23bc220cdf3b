"""Prices of hosted tokens and of machine time, by model, day and tier. An unknown price is an error, never $0.

A PriceBook looks in the prices of the settings file, then in the `file` that these name, then in the catalogue inside
the installed genai-prices package, which is as old as that version, and raises PriceUnknown if none has the model.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from smallfirst.errors import ConfigError, PriceUnknown, did_you_mean
from smallfirst.pricing.charge import Charge
from smallfirst.pricing.machine import MachinePrice
from smallfirst.pricing.money import Usd
from smallfirst.pricing.token_price import NotInCatalogue, TokenPrice, list_price, tokens_by_kind
from smallfirst.pricing.tokens import TokenUsage
from smallfirst.records import ONE, SEVERAL, Record, parse_record, read_yaml

_IN_USD = {name.replace("usd_", ""): name for name in TokenPrice.model_fields if "usd_" in name}
"""Names of a price in another currency, and those of the same in USD."""
_Price = Annotated[
    Annotated[TokenPrice, pydantic.Tag(ONE)] | Annotated[tuple[TokenPrice, ...], pydantic.Tag(SEVERAL)],
    pydantic.Discriminator(lambda price: SEVERAL if isinstance(price, list | tuple) else ONE),
]


class PriceBook(Record):
    """The prices of a project."""

    tokens: dict[str, _Price] = {}
    """Prices by model name, which take precedence over the catalogue: one, or a list of them with `valid_from`. With
    `currency: EUR` a price's names are without usd (`input_per_mtok`, `per_request`), and `currencies` has the rate."""
    currencies: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """USD that a unit of another currency is worth, such as `EUR: 1.08`."""
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

    @pydantic.model_validator(mode="before")
    @classmethod
    def _converted(cls, values: Any) -> Any:
        """Turn prices in other currencies into USD."""
        if not isinstance(values, Mapping) or not isinstance(tokens := values.get("tokens"), Mapping):
            return values
        rates = {"USD": 1.0, **(values.get("currencies") or {})}
        source = str(values.get("source") or "task.yaml")

        def in_usd(model: str, price: Any) -> Any:
            if isinstance(price, list | tuple):
                return [in_usd(model, one) for one in price]
            if not isinstance(price, Mapping) or "currency" not in price:
                return price
            known, rate = dict(price), rates.get(currency := price["currency"])
            del known["currency"]
            if not isinstance(rate, int | float):
                raise ValueError(f"tokens.{model}: no rate of {currency}; write `currencies: {{{currency}: …}}`")
            if currency != "USD" and (wrong := next((name for name in price if "usd" in name), None)):
                raise ValueError(f"tokens.{model}: {wrong} is in USD; in {currency} write {wrong.replace('usd_', '')}")
            known = {_IN_USD.get(name, name): _times(v, rate if name in _IN_USD else 1) for name, v in known.items()}
            return {**known, "source": f"{price.get('source') or source}, {currency} at {rate:g} USD"}

        return {**values, "tokens": {model: in_usd(model, price) for model, price in tokens.items()}}

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
    if values is None or not isinstance(values, Mapping):
        return {"source": settings_file.name} if values is None else values
    own = {**values, "source": settings_file.name}
    if not isinstance(name := own.get("file"), str):
        return own
    path = settings_file.parent / name
    shared = read_yaml(path, hint="prices.file names it")
    parse_record(PriceBook, {**shared, "source": path.name}, where=str(path))  # its own mistakes are named as its own
    tokens = {model: _sourced(price, path.name) for model, price in (shared.get("tokens") or {}).items()}
    merged = {"tokens": tokens, **{name: shared.get(name) or {} for name in ("currencies", "machines")}}
    return {**shared, **own, **{name: {**merged[name], **(own.get(name) or {})} for name in merged}}


def _sourced(price: Any, source: str) -> Any:
    if isinstance(price, list):
        return [_sourced(one, source) for one in price]
    return {"source": source, **price}


def _times(value: Any, rate: float) -> Any:
    return value * rate if isinstance(value, int | float) and not isinstance(value, bool) else value
